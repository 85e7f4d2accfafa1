"""Adapts trained models to another image size or number of channels, resampling tensors as their library does."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ftkit.config import ModelArguments
from ftkit.errors import UserError, listed

from . import timm_models, timm_reshaping
from .first_pass import FAILURES, Size, reason, refusal

logger = logging.getLogger(__name__)
SHAPING = ("image_size", "num_channels")  # keys of transformers' configs that `reshaped` applies
_INPUT = "vision_config"  # the part of a config that holds them, if it has parts


def divided(config: PreTrainedConfig, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split changes of a model into those that loading applies and those that `reshaped` applies afterwards."""
    shaping = {key: value for key, value in changes.items() if key in SHAPING or timm_models.is_config(config)}
    return {key: value for key, value in changes.items() if key not in shaping}, shaping


def sized(config: PreTrainedConfig, changes: dict[str, Any], size: Size | None) -> dict[str, Any]:
    """The config's values for a model with random weights: `changes`, and the image size in the config's form."""
    if timm_models.is_config(config):
        return {"model_args": timm_reshaping.sized(config, changes, size)}
    if size is None:
        return changes
    if _INPUT in config.sub_configs:  # as in CLIP and SigLIP
        given = {**getattr(config, _INPUT).to_dict(), **changes.get(_INPUT, {})}
        return {**changes, _INPUT: {**given, "image_size": _as_in(getattr(config, _INPUT), size)}}
    return {**changes, "image_size": _as_in(config, size)} if "image_size" in config.to_dict() else changes


def _as_in(config: Any, size: Size) -> int | list[int]:
    """A size in the form that `config` uses: an int for squares, unless it holds a list."""
    return size[0] if size[0] == size[1] and isinstance(config.image_size, int) else list(size)


def size_of(model: Any) -> Size | None:
    """Height and width of the images that a model is made for, from its config; None if that names none."""
    found = timm_reshaping.fixed_size(model) or getattr(input_config(model.config), "image_size", None)
    if found is None or isinstance(found, int):
        return None if found is None else (found, found)
    return (found[0], found[-1])


def reshaped(model: PreTrainedModel, args: ModelArguments, model_args: dict[str, Any]) -> PreTrainedModel:
    """A trained model for another image size or number of channels; the same model if nothing changes.

    timm rebuilds its models and resamples what it can. A transformers model that does not take the new size gets the
    position embeddings that its `interpolate_pos_encoding` computes. For other channels, the first convolution is
    summed or repeated, as in timm.

    Args:
        model: a model with all its weights.
        args: names the `size`; without one, the model keeps its own.
        model_args: for timm's models, all arguments that change; for others, those in `SHAPING`.

    Raises:
        UserError: tensors of another shape cannot be resampled; the message names them.
    """
    old, size = model.state_dict(), args.size
    given = [key for key in ("model_args", "image_size") if getattr(args, key)]
    if timm_models.is_config(model.config):
        rebuilt, random, asked = timm_reshaping.reshaped(model, model_args, size)
    else:
        rebuilt, random, asked = _reshaped(model, model_args, size, given)
    if random:
        shown = [f"{name} {tuple(old[name].shape)}" if name in old else f"{name} (missing)" for name in random]
        raise UserError(
            f"model: {len(random)} tensors of {args.model} do not fit {asked} and cannot be resampled: "
            f"{listed(shown)}: leave out {' and '.join(given)}",
            fix=dict.fromkeys(given),
        )
    resampled = [name for name, tensor in rebuilt.state_dict().items() if tensor.shape != old[name].shape]
    if resampled:
        logger.info("weights: %d tensors resampled for %s: %s", len(resampled), asked, listed(resampled))
    return rebuilt


def channels_of(config: Any) -> int:
    """The number of channels of a model's input."""
    if timm_models.is_config(config):
        return (config.model_args or {}).get("in_chans", 3)
    return getattr(input_config(config), "num_channels", 3)


def input_config(config: Any) -> Any:
    """The part of a config that holds the image size and channels."""
    return getattr(config, _INPUT) if _INPUT in config.sub_configs else config


def _reshaped(
    model: Any, model_args: dict[str, Any], size: Size | None, given: list[str]
) -> tuple[Any, list[str], dict[str, Any]]:
    """Reshape a model of transformers: the new model, its tensors without weights, and the changes of its config."""
    config, old = copy.deepcopy(model.config), dict(model.state_dict())
    before, after = input_config(model.config), input_config(config)
    asked = {key: value for key, value in model_args.items() if key != "image_size" and value != vars(before)[key]}
    channels, has_size = channels_of(model.config), "image_size" in after.to_dict()
    if size is not None and has_size and refusal(model, torch.zeros(1, channels, *size)) is not None:
        asked["image_size"] = _as_in(after, size)
    if not asked:
        return model, [], asked
    try:
        for key, value in asked.items():
            setattr(after, key, value)
        config.name_or_path = ""  # these weights are stored nowhere
        with torch.random.fork_rng(devices=[]):
            rebuilt = type(model)(config).eval()
    except FAILURES as error:
        raise UserError(
            f"model: {type(model).__name__} cannot be built with {asked} ({reason(error)}): leave it out",
            fix=dict.fromkeys(given),
        ) from error
    new = rebuilt.state_dict()
    for name in new.keys() & old.keys():
        layer = rebuilt.get_submodule(name.rpartition(".")[0])
        if new[name].shape != old[name].shape and isinstance(layer, nn.Conv2d) and "num_channels" in asked:
            old[name] = adapt_input_conv(after.num_channels, old[name], base_chans=before.num_channels)
    if size is not None and "image_size" in asked:
        old |= _positions(rebuilt, old, size, before.image_size)
    fitting = {name: tensor for name, tensor in old.items() if name in new and tensor.shape == new[name].shape}
    rebuilt.load_state_dict(fitting, strict=False)
    return rebuilt, sorted((new.keys() | old.keys()) - fitting.keys()), asked


@torch.no_grad()
def _positions(rebuilt: Any, old: dict[str, torch.Tensor], size: Size, before: Any) -> dict[str, torch.Tensor]:
    """The position embeddings for `size` that the model itself computes from the old ones.

    Those that it does not compute are empty, so that the caller reports them.
    """
    trial, empty = copy.deepcopy(rebuilt), torch.empty(0)
    seen: dict[str, torch.Tensor] = {}
    method = "interpolate_pos_encoding"
    holders = {place: part for place, part in trial.named_modules() if callable(getattr(part, method, None))}
    names = {
        f"{place}.{name}": place
        for place, part in holders.items()
        for name, _ in part.named_parameters()
        if "position_embedding" in name
    }
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(trial.get_submodule(owner), attribute, nn.Parameter(old[name]))
    for place, part in holders.items():
        setattr(part, method, _noted(getattr(part, method), seen, place))
    if isinstance(before, int) or len(set(before)) == 1:  # transformers assumes that the old size is square
        try:
            trial(pixel_values=torch.zeros(1, channels_of(rebuilt.config), *size), **{method: True})
        except FAILURES as error:
            reason(error)  # the embeddings computed before the failure are still used
    new = rebuilt.state_dict()
    fits = {name: place in seen and seen[place].numel() == new[name].numel() for name, place in names.items()}
    return {name: seen[names[name]].reshape(new[name].shape) if fits[name] else empty for name in names}


def _noted(
    compute: Callable[..., torch.Tensor], seen: dict[str, torch.Tensor], place: str
) -> Callable[..., torch.Tensor]:
    """`compute`, which also records its result in `seen`."""

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        seen[place] = compute(*args, **options)
        return seen[place]

    return noted
