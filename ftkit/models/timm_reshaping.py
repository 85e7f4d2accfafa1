"""Trained models of timm with other arguments: timm itself resamples tensors of another shape."""

import contextlib
import copy
import math
from typing import Any

import timm
import torch
from timm.models import get_model_input_config

from ftkit.compat.timm import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from ftkit.errors import UserError

from . import timm_models


def reshaped(
    model: Any, model_args: dict[str, Any], size: tuple[int, int] | None
) -> tuple[Any, list[str], dict[str, Any]]:
    """A timm model rebuilt with other arguments and its weights; timm resamples tensors of another shape.

    Args:
        model: a model with all its weights.
        model_args: further arguments of `timm.create_model`, beside those of the model's config.
        size: height and width of the input in pixels, for networks that are built for one; None keeps it.

    Returns:
        The model, the names of tensors that the weights lack or that timm does not resample, and all its arguments.

    Raises:
        UserError: timm does not accept the arguments.
    """
    config, before, traits = copy.deepcopy(model.config), model.config.model_args or {}, _traits(model)
    given = {**before, **model_args}
    fixed = traits["fixed_input_size"] and not given.get("dynamic_img_size") and given.get("strict_img_size", True)
    if size is not None and (fixed or "img_size" in given):
        given["img_size"] = list(size)
    if given == before or (given.keys() - before.keys() == {"img_size"} and size == traits["input_size"][1:]):
        return model, [], given
    old, origin = model.timm_model.state_dict(), {"img_size": list(traits["input_size"][1:]), **before}
    source = {"label_offset": 0, "num_classes": config.num_labels, "input_size": traits["input_size"]}
    weights = {"pretrained": True, "pretrained_cfg_overlay": {**source, "state_dict": old}}
    weights["pretrained_model_args"] = origin
    plain = _tensors(config, given, 0)
    random = sorted(plain.keys() ^ old.keys()) or [name for name in plain if plain[name].shape != old[name].shape]
    if plain.keys() == old.keys():
        with contextlib.suppress(_NotLoaded):  # tensors of another shape are left
            # What depends on the seed does not come from the weights.
            plain, again = (_tensors(config, given, seed, **weights) for seed in (0, 1))
            random = [name for name in plain if not torch.equal(plain[name], again[name])]
            if given.get("img_size") != origin["img_size"] and not _is_square(given, origin):
                # As many positions, in another grid.
                random += [name for name in plain if "pos_embed" in name and torch.equal(plain[name], old[name])]
    both = [name for name in random if "pos_embed" in name and name in old and name in plain]
    found = {name: _resampled(old[name], plain[name].shape) for name in both}
    positions = {name: tensor for name, tensor in found.items() if tensor is not None}
    if random and positions.keys() == set(random) and _is_square(given, origin):
        plain, random = {**old, **positions}, []
    if random:
        return model, [f"{timm_models.PLACE}.{name}" for name in random], given
    config.model_args, config.name_or_path = given, ""  # no place holds these weights
    with torch.random.fork_rng(devices=[]):
        rebuilt = type(model)(config).eval()
    rebuilt.timm_model.load_state_dict(plain)
    return rebuilt, [], given


def _is_square(*model_args: dict[str, Any]) -> bool:
    return all(args["img_size"][0] == args["img_size"][-1] for args in model_args if "img_size" in args)


def _resampled(positions: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """Position embeddings of square images, which not all of timm's architectures resample when they load weights.

    Args:
        positions: (1, P + S * S, D), with P prefix tokens, or (1, D, S, S).
        shape: the shape wanted, for another S.

    Returns:
        None if the shapes are others.
    """
    if positions.ndim == len(shape) == 4 and positions.shape[:2] == shape[:2]:
        squares = positions.shape[2] == positions.shape[3] and shape[2] == shape[3]
        nhwc = resample_abs_pos_embed_nhwc(positions.permute(0, 2, 3, 1), list(shape[2:])) if squares else None
        return None if nhwc is None else nhwc.permute(0, 3, 1, 2).contiguous()
    if positions.ndim == len(shape) == 3 and positions.shape[::2] == shape[::2]:
        for prefix in range(min(3, positions.shape[1], shape[1])):
            before, after = (math.isqrt(count - prefix) for count in (positions.shape[1], shape[1]))
            if before**2 + prefix == positions.shape[1] and after**2 + prefix == shape[1]:
                return resample_abs_pos_embed(positions, [after, after], num_prefix_tokens=prefix)
    return None


class _NotLoaded(Exception):
    """timm could not load weights into a model of other shapes."""


def _tensors(config: Any, model_args: dict[str, Any], seed: int, **weights: Any) -> dict[str, torch.Tensor]:
    """The tensors of timm's network of a config with these arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = timm.create_model(config.architecture, num_classes=config.num_labels, **weights, **model_args)
        except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
            if weights:
                raise _NotLoaded from error
            raise UserError(timm_models.cannot_build(config.architecture, model_args, error)) from error
    return network.state_dict()


def _traits(model: Any) -> dict[str, Any]:
    """The input that a timm model is built for: `input_size` (C, H, W), and whether it is a `fixed_input_size`."""
    return get_model_input_config(model.timm_model)


def fixed_size(model: Any) -> tuple[int, int] | None:
    """Height and width of the images that a timm model is built for; None if it takes any, or is not timm's."""
    if not timm_models.is_config(model.config):
        return None
    traits = _traits(model)
    built_for_one = traits["fixed_input_size"] or "img_size" in (model.config.model_args or {})
    return tuple(traits["input_size"][1:]) if built_for_one else None


def sized(config: Any, changes: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any] | None:
    """The `model_args` of a config with changes, for images of this size if the architecture is built for one."""
    model_args = {**(config.model_args or {}), **changes}
    fixed = "img_size" in model_args or timm_models.preset_of(config.architecture).fixed_input_size
    return {**model_args, "img_size": list(size)} if fixed and size is not None else model_args or None
