"""Saved models from a folder or the Hub, loaded unchanged or with a head for other classes."""

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
from .fitting import average_normalization, fit_processor
from .reshaping import channels_of, divided, reshaped, sized

logger = logging.getLogger(__name__)
T = TypeVar("T")
_DROPOUT = ("dropout", "hidden_dropout_prob", "dropout_rate")  # its names in transformers' configs


def load_saved(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel | PeftModel, Any]:
    """A saved model, with adapters on top of their base model, and its image processor.

    Raises:
        UserError: the model does not exist or cannot be loaded.
    """
    place = str(local_model(name) or name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}

    def load() -> tuple[PreTrainedModel | PeftModel, Any]:
        adapted = find_adapter_config_file(place, revision=revision) is not None
        model = _with_adapters(place, **options) if adapted else _from_pretrained(place, **options)
        return model, AutoImageProcessor.from_pretrained(place, **options)

    return _loading(place, load)


def load_for_classes(args: ModelArguments, labels: dict[str, Any], pretrained: bool) -> tuple[PreTrainedModel, Any]:
    """A saved model for these classes, with its weights or with random ones, and its image processor.

    The head keeps its weights if the classes are the same, in any order; otherwise it is new.

    Args:
        labels: `num_labels`, `id2label` and `label2id` of the config.
        pretrained: whether to load the weights too.

    Raises:
        UserError: the model does not take these arguments, or cannot be loaded.
    """
    place = str(local_model(args.model) or hub_name(args.model))
    if local_model(args.model) is not None and (Path(place) / "adapter_config.json").is_file():
        raise UserError(
            f"model: {place} holds adapters, not a full model: fine-tune their base model, or train them again with "
            "--merge_adapters true"
        )
    source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = _loading(place, lambda: AutoConfig.from_pretrained(place, **source))
    changes = _overrides(args, config, place)
    if pretrained:
        changes, shaping = divided(config, changes)
        changes |= labels
        model = _loading(place, lambda: _from_pretrained(place, **source, **changes, ignore_mismatched_sizes=True))
        model = reshaped(model, args, shaping)
        _fit_head(model, [config.id2label[i] for i in sorted(config.id2label)], list(labels["id2label"].values()))
    else:
        changes = {**sized(config, changes, args.size), **labels}
        config = _loading(place, lambda: AutoConfig.from_pretrained(place, **source, **changes))
        options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
        model = _loading(place, lambda: AutoModelForImageClassification.from_config(config, **options))
    timm_models.name_classes(model)
    processor = _loading(place, lambda: AutoImageProcessor.from_pretrained(place, **source))
    if channels_of(model.config) == 1 < channels_of(config) and pretrained:
        processor = average_normalization(model.config, processor)
    return model, fit_processor(model.config, processor, args.size, args.image_fit)


def hub_name(model: str) -> str | None:
    """The name on the Hub of the model that a run starts from; None for a folder or a weights file.

    Raises:
        UserError: timm has no trained weights for it.
    """
    if local_model(model) is not None or weights_file(model) is not None:
        return None
    return timm_models.hub_name(model) if model.startswith(timm_models.PREFIX) else model


def check_keys(model: str, model_args: dict[str, Any] | None, valid: list[str]) -> None:
    """Check that the config of `model` has every key of `model_args`.

    Raises:
        UserError: a key is unknown; the message names it and all valid keys.
    """
    for key in model_args or {}:
        if key not in valid:
            raise UserError(f"model_args: {model} has no {key!r}{nearest(key, valid)}: {', '.join(valid)}")


def _from_pretrained(place: str, **options: Any) -> PreTrainedModel:
    """The model with the weights of `place`, in float32: small updates would vanish in 16 bits."""
    return AutoModelForImageClassification.from_pretrained(place, dtype=torch.float32, **options)


def _with_adapters(place: str, revision: str | None, trust_remote_code: bool) -> PeftModel:
    """The base model of the adapters in a folder or on the Hub, with the adapters and their head."""
    adapters = PeftConfig.from_pretrained(place, revision=revision)
    base, options = adapters.base_model_name_or_path, {"trust_remote_code": trust_remote_code}
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"model: {place} holds adapters of the model in {base}, which does not exist: restore it, or set "
            "base_model_name_or_path in adapter_config.json to its new place"
        )
    config = AutoConfig.from_pretrained(place, revision=revision, **options)
    model = _from_pretrained(base, config=config, revision=adapters.revision, ignore_mismatched_sizes=True, **options)
    return PeftModel.from_pretrained(model, place, revision=revision)


def _loading(place: str, load: Callable[[], T]) -> T:
    """Call `load`; an error becomes a `UserError` that names the model."""
    if local_model(place) is None:
        fix = "give --model the folder of a saved model"
        return from_hub(load, what=f"model {place} (there is no such folder)", fix=fix)
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        raise UserError(f"model: {place} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _overrides(args: ModelArguments, config: PreTrainedConfig, place: str) -> dict[str, Any]:
    """The changes to the config from `model_args` and `dropout`."""
    theirs = timm_models.overrides(config, timm_models.with_dropout(args.model_args, args.dropout))
    if theirs is not None:
        return theirs
    check_keys(args.model, args.model_args, sorted(config.to_dict()))
    overrides = dict(args.model_args or {})
    if args.dropout is not None:
        key = next((key for key in _DROPOUT if hasattr(config, key)), None)
        if key is None:
            raise UserError(
                f"dropout: the config of {place} has none of {', '.join(_DROPOUT)}: set its own key in model_args"
            )
        overrides[key] = args.dropout
    return overrides


def _fit_head(model: PreTrainedModel, old: list[str], new: list[str]) -> None:
    """Fit the rows of the loaded head to the classes `new`, by name.

    With another number of classes the head is new already; with as many other classes, it still has the old weights.
    """
    if old == new:
        logger.info("head: kept, the classes are the same")
    elif sorted(old) == sorted(new):
        _, head = find_head(model)
        rows = torch.tensor([old.index(name) for name in new])
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter[rows].clone())
        logger.info("head: kept, its rows reordered to the order of the data's classes")
    else:
        if len(old) == len(new):
            find_head(model)[1].reset_parameters()
        logger.info("head: new, the classes differ from the model's %d", len(old))
