"""Undocumented names of transformers, except the `Trainer`'s, which are in `ftkit.compat.trainer`."""

from typing import Any

from transformers import PreTrainedModel
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
    "unset_hf_deepspeed_config",  # otherwise transformers builds sharded models, but ftkit shards them itself
]


def forget_renaming(model: PreTrainedModel) -> None:
    """Let `save_pretrained` leave out a prefix that a `key_mapping` of one row stripped: it would put it back."""
    own: Any = model
    own._weight_conversions = own._weight_conversions[1:]
