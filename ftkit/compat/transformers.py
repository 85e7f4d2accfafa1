"""Undocumented names of transformers, but for the `Trainer`'s, which stand in `ftkit.compat.trainer`."""

from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
    unset_hf_deepspeed_config,
)

__all__ = [
    "INTEGRATION_TO_CALLBACK",  # the names that `report_to` knows, to refuse others before the start
    "get_available_reporting_integrations",  # those whose package is installed
    "get_reporting_integration_callbacks",  # their callbacks, to shield training from their failures
    "unset_hf_deepspeed_config",  # without it transformers builds models in pieces, which ftkit shards itself
]
