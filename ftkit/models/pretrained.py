"""Saved models from a folder or the Hub, loaded unchanged or with a head for other classes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import WEIGHTS_NAME, find_adapter_config_file

from ftkit.config import ModelArguments, local_model, weights_file
from ftkit.config.arguments.model import as_path
from ftkit.data.sources.remote import from_hub
from ftkit.errors import UserError, as_options, nearest

from . import own, timm_models  # noqa: F401 (the Auto classes must know ftkit's own models)
from .adapted import base_of, with_adapters
from .anatomy import class_axes, draw_head, head_tensors, name_head, new_modules
from .base_config import class_names, log_dropout, read_config, set_classes
from .checks import folder_without_config
from .first_pass import FAILURES
from .fitting import average_normalization, fit_processor, size_of_square
from .loading import DAMAGED, Loaded, check_whole, load_from, reason
from .reshaping import channels_of, divided, reshaped, sized

logger = logging.getLogger(__name__)
T = TypeVar("T")
_DROPOUT = ("dropout", "hidden_dropout_prob", "dropout_rate")  # its names in transformers' configs


def load_saved(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel | PeftModel, Any]:
    """A saved model, with adapters on top of their base model, and its image processor.

    Raises:
        UserError: the model does not exist, cannot be loaded, or is incomplete.
    """
    place = str(local_model(name) or name)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}

    def saved() -> tuple[PreTrainedModel | PeftModel, Any]:
        config = read_config(place, source)
        set_classes(config, place, revision)
        timm_models.name_classes(config)
        adapted = find_adapter_config_file(place, revision=revision) is not None
        model = with_adapters(place, config, source) if adapted else _whole(place, config, source)
        return model, _processor(place, source)

    return _loading(place, saved)


def load_for_classes(args: ModelArguments, labels: dict[str, Any], pretrained: bool) -> tuple[PreTrainedModel, Any]:
    """A saved model for these classes, with its weights or with random ones, and its image processor.

    The head keeps its weights if the classes are the same, in any order; otherwise it is new.

    Args:
        labels: the options of the config that depend on the task, see `Task.config_options`.
        pretrained: whether to load the weights too.

    Raises:
        UserError: the model does not take these arguments, cannot be loaded, or lacks weights outside of its head.
    """
    place = str(local_model(args.model) or hub_name(args.model))
    source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    theirs = _loading(place, lambda: _base_config(place, source))
    given = _overrides(args, theirs, place)
    changes, shaping = divided(theirs, given) if pretrained else (sized(theirs, given, args.size), {})
    config = _loading(place, lambda: read_config(place, source, {**changes, **labels}))
    timm_models.name_classes(config)
    processor = _loading(place, lambda: _processor(place, source))
    if pretrained:
        loaded = _loading(place, lambda: load_from(place, config, source, without={"method": "scratch"}))
        model = loaded.model
        name_head(model, args.head)
        fix, settings = _way_out(loaded, args, place)
        check_whole(loaded, place, new=head_tensors(model), fix=fix, settings=settings)
        _log_changes(theirs.to_dict(), changes)
        _fit_head(loaded, class_names(theirs), list(labels["id2label"].values()))
    else:
        options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
        model = _loading(place, lambda: AutoModelForImageClassification.from_config(config, **options))
        name_head(model, args.head)
    log_dropout(model.config)
    if pretrained:
        return shaped(model, processor, args, shaping)
    return model, fit_processor(model.config, processor, args.size, args.image_fit)


def shaped(
    model: PreTrainedModel, processor: Any, args: ModelArguments, model_args: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """A model and its image processor for the size, fit and channels of a run, see `reshaped` and `fit_processor`."""
    channels = channels_of(model.config)
    model = reshaped(model, args, model_args) if model_args or args.size else model
    if channels_of(model.config) < channels:
        processor = average_normalization(model.config, processor)
    return model, fit_processor(model.config, processor, args.size, args.image_fit)


def _way_out(loaded: Loaded, args: ModelArguments, place: str) -> tuple[str, dict[str, Any]]:
    """How to get weights that fit, if the file does not: a sentence, and the settings that it recommends."""
    nested = {"state_dict", "model"} & {name.rpartition(".")[2] for name in loaded.unused}
    if nested and not loaded.fits and local_model(place) is not None:
        settings: dict[str, Any] = {"model": str(Path(place) / WEIGHTS_NAME), "architecture": place}
        return f"the weights are inside, as training scripts save them: set {as_options(settings)}", settings
    if args.model_args:
        return "leave out model_args", {"model_args": None}
    if modules := new_modules(loaded.model, loaded.lacking):
        settings = {"head": modules}
        return (
            "if they come from pretraining without these tensors, train them with the head: set "
            f"{as_options(settings)}"
        ), settings
    return "", {}


def hub_name(model: str) -> str | None:
    """The name on the Hub of the model that a run starts from; None for a folder or a weights file.

    Raises:
        UserError: timm has no trained weights for it.
    """
    if local_model(model) is not None or weights_file(model) is not None:
        return None
    return timm_models.hub_name(model) if model.startswith(timm_models.PREFIX) else model


def check_keys(model: str, model_args: dict[str, Any] | None, config: PreTrainedConfig) -> None:
    """Check that every key of `model_args` belongs to this model's config, not to all configs: a run sets those.

    Raises:
        UserError: a key is unknown; the message names it and all valid keys.
    """
    valid = sorted(config.to_dict().keys() - PreTrainedConfig().to_dict().keys() - {"auto_map", "architectures"})
    for key in model_args or {}:
        if key not in valid:
            raise UserError(f"model_args: {model} has no {key!r}{nearest(key, valid)}: {', '.join(valid)}")


def _base_config(place: str, source: dict[str, Any]) -> PreTrainedConfig:
    """The config of a model to fine-tune; adapters are refused."""
    if find_adapter_config_file(place, revision=source["revision"]) is not None:
        base = base_of(PeftConfig.from_pretrained(place, revision=source["revision"]), place)
        raise UserError(
            f"model: {place} holds adapters, not a full model: fine-tune their base model, {base}, or train them "
            "again with --merge_adapters true",
            fix={"model": base},
        )
    return read_config(place, source)


def _whole(place: str, config: PreTrainedConfig, source: dict[str, Any]) -> PreTrainedModel:
    """The model with the weights of `place`, which must be complete."""
    loaded = load_from(place, config, source)
    fix = ""
    if loaded.lacking and loaded.lacking.keys() <= head_tensors(loaded.model):
        fix = f"correct id2label in its config.json, which names {config.num_labels} classes"
        if None in loaded.lacking.values():
            fix = "it was saved without a trained head: train one with recipes/finetune.py"
    check_whole(loaded, place, fix=fix)
    return loaded.model


def _processor(place: str, source: dict[str, Any]) -> Any:
    """The image processor of a saved model; a timm model keeps it in its config."""
    try:
        processor = AutoImageProcessor.from_pretrained(place, **source)
    except OSError:
        if (folder := local_model(place)) is None or (folder / "preprocessor_config.json").is_file():
            raise
        raise UserError(
            f"model: {place} lacks preprocessor_config.json, which says how images become the model's input: copy it "
            "from where the weights come from, or write it with transformers: "
            f"ViTImageProcessor(size=…, image_mean=…, image_std=…).save_pretrained({str(folder)!r})"
        ) from None
    try:
        size_of_square(processor)
    except FAILURES as error:
        raise UserError(
            f"model: the image processor of {place}, a {type(processor).__name__}, takes no images "
            f"({reason(error)}): correct its preprocessor_config.json, or copy it from where the weights come from"
        ) from error
    return processor


def _loading(place: str, load: Callable[[], T]) -> T:
    """Call `load`; an error becomes a `UserError` that names the model."""
    try:
        if local_model(place) is not None:
            return load()
        if as_path(place).is_dir():
            raise UserError(folder_without_config(as_path(place)))
        fix = "give --model the folder of a saved model"
        return from_hub(load, what=f"model {place} (there is no such folder)", fix=fix)
    except DAMAGED as error:
        raise UserError(f"model: {place} cannot be loaded: {reason(error)}") from error


def _overrides(args: ModelArguments, config: PreTrainedConfig, place: str) -> dict[str, Any]:
    """The changes to the config from `model_args` and `dropout`."""
    if timm_models.is_config(config):
        return timm_models.with_dropout(args.model_args, args.dropout)
    check_keys(args.model, args.model_args, config)
    overrides = dict(args.model_args or {})
    if args.dropout is not None:
        key = next((key for key in _DROPOUT if hasattr(config, key)), None)
        if key is None:
            raise UserError(
                f"dropout: the config of {place} has none of {', '.join(_DROPOUT)}: set its own key in model_args"
            )
        overrides[key] = args.dropout
    return overrides


def _log_changes(before: dict[str, Any], changes: dict[str, Any]) -> None:
    """Warn of config changes that loading cannot detect, because they change no tensor's shape."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(before[key], dict):
            _log_changes(before[key], value)
        elif value != before.get(key) and "drop" not in key:
            logger.warning("model_args: the weights were trained with %s: %s instead of %s", key, before[key], value)


def _fit_head(loaded: Loaded, old: list[str] | None, new: list[str]) -> None:
    """Fit the rows of the loaded head to the classes `new`, by name; a new head is random.

    Args:
        loaded: the model, and what its file lacked.
        old: the classes of the head in the file; None if they are not known.
        new: the classes wanted.
    """
    model, axes = loaded.model, class_axes(loaded.model)
    layers = {name.rpartition(".")[0] for name in axes}
    logits = {name for name in model.state_dict() if name.rpartition(".")[0] in layers}
    drawn = loaded.lacking.keys() & logits
    if not drawn and old == new:
        logger.info("head: kept, the classes are the same")
    elif not drawn and old is not None and sorted(old) == sorted(new) and None not in axes.values():
        rows, tensors = torch.tensor([old.index(name) for name in new]), model.state_dict()
        with torch.no_grad():
            for name, axis in axes.items():
                tensors[name].copy_(tensors[name].index_select(axis, rows))
        logger.info("head: kept, its rows reordered to the order of the data's classes")
    else:
        if drawn != logits:
            draw_head(model)
        if any(loaded.lacking[name] is None for name in drawn):
            logger.info("head: new, the model was saved without one")
        else:
            logger.info("head: new, the classes differ from the model's%s", f" {len(old)}" if old else "")
