"""Adapters on top of their base model."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from transformers import PreTrainedConfig

from ftkit.config import local_model
from ftkit.errors import UserError, listed

from .anatomy import plain_name
from .loading import check_numbers, check_whole, load_from, stored_weights

_NAMES = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)  # of PEFT's files


def base_of(adapters: PeftConfig, place: str) -> str:
    """The base model of the adapters in `place`: a folder or a name on the Hub.

    Raises:
        UserError: the folder does not exist.
    """
    base = str(adapters.base_model_name_or_path)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"model: {place} holds adapters of the model in {base}, which does not exist: restore it, or set "
            "base_model_name_or_path in adapter_config.json to its new place"
        )
    return base


def with_adapters(place: str, config: PreTrainedConfig, source: dict[str, Any]) -> PeftModel:
    """The base model of the adapters in a folder or on the Hub, with the adapters and their head.

    Args:
        place: the folder or the name on the Hub.
        config: the config beside the adapters, with their classes.
        source: `revision` and `trust_remote_code`.

    Raises:
        UserError: the base model or a tensor is missing, or a full model lies beside the adapters.
    """
    if (folder := local_model(place)) is not None and (full := stored_weights(folder)):
        raise UserError(
            f"model: {place} holds adapters (adapter_config.json) and a full model ({full[0]}): delete the "
            "files of one of them"
        )
    adapters = PeftConfig.from_pretrained(place, revision=source["revision"])
    base = base_of(adapters, place)
    loaded = load_from(base, config, {**source, "revision": adapters.revision})
    if folder is not None and not any((folder / name).is_file() for name in _NAMES):
        raise UserError(f"model: {place} holds adapter_config.json and no adapters: expected {' or '.join(_NAMES)}")
    given = load_peft_weights(place, device="cpu", revision=source["revision"])
    check_whole(loaded, base, new={plain_name(name) for name in given})
    check_numbers(given, place)
    try:
        model = PeftModel.from_pretrained(loaded.model, place, revision=source["revision"])
        saved = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    except KeyError as error:  # a module of `modules_to_save`
        saved = given.keys() | {error.args[0]}
    missing, unknown = sorted(saved - given.keys()), sorted(given.keys() - saved)
    if missing or unknown:
        raise UserError(
            f"model: the adapters in {place} do not fit their adapter_config.json (missing: "
            f"{listed(missing) or 'none'}; fit nowhere: {listed(unknown) or 'none'}): take the files that were saved "
            "together"
        )
    return model
