"""Saved models, from a folder or the Hub, with the weights as they are or with a head for other classes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import find_adapter_config_file

from ftkit.config import ModelArguments, local_model, weights_file
from ftkit.data.sources.remote import from_hub
from ftkit.errors import UserError, nearest

from . import own, timm_models  # noqa: F401 (the Auto classes must know ftkit's own models)
from .anatomy import find_head

logger = logging.getLogger(__name__)
T = TypeVar("T")
_DROPOUT = ("dropout", "hidden_dropout_prob", "dropout_rate")  # as the configs of other libraries call it


def load_saved(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel | PeftModel, Any]:
    """A saved classifier and its image processor; adapters are put into the model that they belong to.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    place = str(local_model(name) or name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}

    def load() -> tuple[PreTrainedModel | PeftModel, Any]:
        adapted = find_adapter_config_file(place, revision=revision) is not None
        model = _with_adapters(place, **options) if adapted else _from_pretrained(place, **options)
        return model, AutoImageProcessor.from_pretrained(place, **options)

    return _loading(place, load)


def load_for_classes(args: ModelArguments, labels: dict[str, Any], pretrained: bool) -> tuple[PreTrainedModel, Any]:
    """A saved model, or its architecture alone with random weights, for other classes; and its image processor.

    The head keeps what it knows where the classes are the same, in any order; else it is new.

    Args:
        labels: `num_labels`, `id2label` and `label2id` of the config.
        pretrained: whether to take the weights too.

    Raises:
        UserError: it takes other arguments, or cannot be loaded.
    """
    place = str(local_model(args.model) or hub_name(args.model))
    if local_model(args.model) is not None and (Path(place) / "adapter_config.json").is_file():
        raise UserError(
            f"model: {place} holds adapters, not a whole model: fine-tune what they belong to, or make them a part "
            "of it with --merge_adapters true when they are trained"
        )
    if args.image_size:
        raise UserError(f"image_size: {place} has its own, in its image processor: leave it out")
    source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = _loading(place, lambda: AutoConfig.from_pretrained(place, **source))
    changes = {**_overrides(args, config, place), **labels}
    if pretrained:
        model = _loading(
            place,
            lambda: _from_pretrained(place, **source, **changes, ignore_mismatched_sizes=True),
        )
        _fit_head(model, [config.id2label[i] for i in sorted(config.id2label)], list(labels["id2label"].values()))
    else:
        config = _loading(place, lambda: AutoConfig.from_pretrained(place, **source, **changes))
        code = {"trust_remote_code": args.trust_remote_code}
        model = _loading(
            place,
            lambda: AutoModelForImageClassification.from_config(config, dtype=torch.float32, **code),
        )
    timm_models.name_classes(model)
    return model, _loading(place, lambda: AutoImageProcessor.from_pretrained(place, **source))


def hub_name(model: str) -> str | None:
    """The name on the Hub of a model that a run starts from; None for a folder or a file of weights.

    Raises:
        UserError: it is one of timm's without trained weights.
    """
    if local_model(model) is not None or weights_file(model) is not None:
        return None
    return timm_models.hub_name(model) if model.startswith(timm_models.PREFIX) else model


def check_keys(model: str, model_args: dict[str, Any] | None, valid: list[str]) -> None:
    """Refuse what the config of `model` does not have.

    Raises:
        UserError: names the first such key, and those that there are.
    """
    for key in model_args or {}:
        if key not in valid:
            raise UserError(f"model_args: {model} has no {key!r}{nearest(key, valid)}: {', '.join(valid)}")


def _from_pretrained(place: str, **options: Any) -> PreTrainedModel:
    """A classifier with the weights of `place`, in float32: small updates vanish in the 16 bits of many a base."""
    return AutoModelForImageClassification.from_pretrained(place, dtype=torch.float32, **options)


def _with_adapters(place: str, revision: str | None, trust_remote_code: bool) -> PeftModel:
    """The model that the adapters in a folder or on the Hub belong to, with them in it; the head is theirs."""
    adapters = PeftConfig.from_pretrained(place, revision=revision)
    base, options = adapters.base_model_name_or_path, {"trust_remote_code": trust_remote_code}
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"model: {place} holds adapters of the model in {base}, which does not exist: bring it back, or write its "
            f"new place into base_model_name_or_path of its adapter_config.json"
        )
    config = AutoConfig.from_pretrained(place, revision=revision, **options)
    model = _from_pretrained(base, config=config, revision=adapters.revision, ignore_mismatched_sizes=True, **options)
    return PeftModel.from_pretrained(model, place, revision=revision)


def _loading(place: str, load: Callable[[], T]) -> T:
    """Call `load`; what goes wrong becomes a `UserError` that names the model."""
    if local_model(place) is None:
        fix = "give --model the folder of a saved model"
        return from_hub(load, what=f"model {place} (there is no such folder)", fix=fix)
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        raise UserError(f"model: {place} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _overrides(args: ModelArguments, config: PreTrainedConfig, place: str) -> dict[str, Any]:
    """What `model_args` and `dropout` change in the config."""
    theirs = timm_models.overrides(config, timm_models.with_dropout(args.model_args, args.dropout))
    if theirs is not None:
        return theirs
    check_keys(args.model, args.model_args, sorted(config.to_dict()))
    overrides = dict(args.model_args or {})
    if args.dropout is not None:
        key = next((key for key in _DROPOUT if hasattr(config, key)), None)
        if key is None:
            raise UserError(
                f"dropout: the config of {place} has no known dropout: set it by its own name in model_args"
            )
        overrides[key] = args.dropout
    return overrides


def _fit_head(model: PreTrainedModel, old: list[str], new: list[str]) -> None:
    """Make the loaded head mean the classes `new`, by name.

    Another number of classes has given a new head already; as many under other names would keep the old one.
    """
    if old == new:
        logger.info("head: kept, the classes are the same")
    elif sorted(old) == sorted(new):
        _, head = find_head(model)
        rows = torch.tensor([old.index(name) for name in new])
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter[rows].clone())
        logger.info("head: kept, its rows brought into the order of the data's classes")
    else:
        if len(old) == len(new):
            find_head(model)[1].reset_parameters()
        logger.info("head: new, the classes differ from the %d that the model knew", len(old))
