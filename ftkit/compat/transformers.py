"""Undocumented names of transformers, except the `Trainer`'s, which are in `ftkit.compat.trainer`."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights
from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
    unset_hf_deepspeed_config,
)

__all__ = [
    "INTEGRATION_TO_CALLBACK",  # the names for `report_to`, to refuse others before the start
    "forget_renaming",
    "get_available_reporting_integrations",  # the names whose package is installed
    "get_reporting_integration_callbacks",  # their callbacks, to shield training from their failures
    "tensors_of_config",
    "unset_hf_deepspeed_config",  # otherwise transformers builds sharded models, but ftkit shards them itself
]


def forget_renaming(model: PreTrainedModel) -> None:
    """Keep `save_pretrained` from adding back the prefix that a one-row `key_mapping` stripped."""
    own: Any = model
    own._weight_conversions = own._weight_conversions[1:]


def tensors_of_config(kind: Callable[[Any], nn.Module], config: Any, **changes: Any) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model with this config and these changes to it, by name, on the meta device.

    It is built as `from_pretrained` builds it; every public way initialises all weights.
    """
    config = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(config, key, value)
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        meta_device_safe_creation_ops(),
        no_init_weights(),
    ):
        return kind(config).state_dict()
