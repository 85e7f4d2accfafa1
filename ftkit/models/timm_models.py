"""timm's models as transformers wraps them: everything that differs from other models.

Classes, channels, size, normalisation and even the image processor are part of the model's config. The functions take
any model; each says what it returns for other models than timm's.
"""

import contextlib
import copy
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_model_input_config, group_parameters, split_model_name_tag
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)

from ftkit.errors import UserError

PREFIX = "timm/"  # before timm's names in recipes
_CROP_MODES = {"squash": "squash", "crop": "center", "pad": "border"}  # what timm calls each `image_fit`
PLACE = "timm_model"  # the attribute of transformers' wrapper that holds timm's module


def _preset(name: str) -> PretrainedCfg:
    """timm's settings for an architecture, such as input size and normalisation."""
    return timm.get_pretrained_cfg(split_model_name_tag(name.removeprefix(PREFIX))[0]) or PretrainedCfg()


def usual_side(name: str) -> int:
    """The usual side of the input of `timm/<architecture>`, in pixels."""
    return _preset(name).input_size[-1]


def hub_name(name: str) -> str:
    """The Hub's name for the trained weights of `timm/<architecture>`, with timm's default tag if the name has no tag.

    Raises:
        UserError: timm has no trained weights.
    """
    if "." in name:
        return name
    default = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    if default is None or not default.tag:
        raise UserError(
            f"model: timm has no trained weights for {name!r}: use method: scratch or another architecture"
        )
    return f"{name}.{default.tag}"


def build(
    name: str, side: tuple[int, int], model_args: dict[str, Any] | None, labels: dict[str, Any]
) -> tuple[PreTrainedModel, TimmWrapperImageProcessor]:
    """`timm/<architecture>` with random weights, for the three channels that a `pipeline` feeds.

    Args:
        side: height and width of the input.
        model_args: options of `timm.create_model`.
        labels: `num_labels`, `id2label` and `label2id` of the config.

    Raises:
        UserError: timm does not accept the arguments.
    """
    architecture, preset = split_model_name_tag(name.removeprefix(PREFIX))[0], _preset(name)
    model_args = dict(model_args or {})
    if preset.fixed_input_size:
        model_args.setdefault("img_size", list(side))
    preprocessing = {
        "input_size": [3, *side],
        "mean": list(preset.mean),
        "std": list(preset.std),
        "interpolation": preset.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    options: dict[str, Any] = {
        "architecture": architecture,
        "model_args": model_args or None,
        "pretrained_cfg": preprocessing,
    }
    config = TimmWrapperConfig(**options, **labels)
    try:
        model = TimmWrapperForImageClassification(config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(_cannot_build(architecture, model_args, error)) from error
    # The initial weights are transformers', N(0, 0.02): resnet18 learned faster with them than with timm's (53% and
    # 43% with SGD, 54% and 49% with AdamW, on validation after 4 epochs of 5,000 CIFAR-10 images, one seed each).
    name_classes(model.config)
    return model, TimmWrapperImageProcessor(preprocessing, architecture=architecture)


def _cannot_build(architecture: str, model_args: dict[str, Any], error: Exception) -> str:
    return f"model: timm cannot build {architecture} with {model_args}: {' '.join(str(error).split())}"


def with_dropout(model_args: dict[str, Any] | None, dropout: float | None) -> dict[str, Any]:
    """`model_args` with the dropout before the head, timm's `drop_rate`."""
    return dict(model_args or {}) | ({} if dropout is None else {"drop_rate": dropout})


def overrides(config: PreTrainedConfig, model_args: dict[str, Any]) -> dict[str, Any] | None:
    """The changes to the config of a timm model from `model_args`; None for another model."""
    if not isinstance(config, TimmWrapperConfig):
        return None
    return {"model_args": {**(config.model_args or {}), **model_args}} if model_args else {}


def name_classes(config: PreTrainedConfig) -> None:
    """Update the second list of class names in the config of a timm model; no change to another config."""
    if isinstance(config, TimmWrapperConfig):
        names: dict[Any, str] = dict(config.id2label or {})
        vars(config)["label_names"] = [names[i] for i in range(len(names))]


def is_config(config: PreTrainedConfig) -> bool:
    """Whether a model with this config needs timm."""
    return isinstance(config, TimmWrapperConfig)


def channels(config: PreTrainedConfig) -> int | None:
    """The number of input channels of a timm model; None for another model."""
    return (config.model_args or {}).get("in_chans", 3) if isinstance(config, TimmWrapperConfig) else None


def reshaped(
    model: Any, model_args: dict[str, Any], size: tuple[int, int] | None
) -> tuple[Any, list[str], dict[str, Any]]:
    """A timm model with its weights, built anew with other arguments; timm resamples tensors of another shape.

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
    if random:
        return model, [f"{PLACE}.{name}" for name in random], given
    config.model_args, config.name_or_path = given, ""  # no place holds these weights
    with torch.random.fork_rng(devices=[]):
        anew = TimmWrapperForImageClassification(config).eval()
    anew.timm_model.load_state_dict(plain)
    return anew, [], given


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
            raise UserError(_cannot_build(config.architecture, model_args, error)) from error
    return network.state_dict()


def _traits(model: Any) -> dict[str, Any]:
    """What timm knows of the input of its model: `input_size` (C, H, W) and whether it has a `fixed_input_size`."""
    return get_model_input_config(model.timm_model)


def fixed_size(model: Any) -> tuple[int, int] | None:
    """Height and width of the images that a timm model is built for; None if for none, or it is not timm's."""
    if not is_config(model.config):
        return None
    traits = _traits(model)
    built_for_one = traits["fixed_input_size"] or "img_size" in (model.config.model_args or {})
    return tuple(traits["input_size"][1:]) if built_for_one else None


def sized(config: Any, model_args: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """`model_args` for images of this size, for the architectures that are built for one."""
    fixed = _preset(config.architecture).fixed_input_size
    return {**model_args, "img_size": list(size)} if fixed or "img_size" in model_args else model_args


def lives_in_config(processor: Any) -> bool:
    """Whether an image processor is saved in its model's config instead of its own file."""
    return isinstance(processor, TimmWrapperImageProcessor)


def pads_with_mean(processor: Any) -> bool:
    """Whether an image processor pads images with the mean that it normalises with."""
    return lives_in_config(processor) and processor.data_config["crop_mode"] == _CROP_MODES["pad"]


def normalizing(config: Any, mean: list[float], std: list[float]) -> TimmWrapperImageProcessor:
    """The image processor of a timm model with a new normalisation, which is also set in its `config."""
    config.pretrained_cfg = {**config.pretrained_cfg, "mean": mean, "std": std}
    return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)


def fitting(config: Any, size: tuple[int, int], fit: str, crop_pct: float | None) -> TimmWrapperImageProcessor:
    """The image processor of a timm model with another size or fit, which are also set in its `config`.

    Args:
        size: height and width of the images.
        fit: see `image_fit`.
        crop_pct: the share of the resized image that is left; None keeps that of `config`.
    """
    changes: dict[str, Any] = {"input_size": [3, *size], "crop_mode": _CROP_MODES[fit]}
    if crop_pct is not None:
        changes["crop_pct"] = crop_pct
    config.pretrained_cfg = {**config.pretrained_cfg, **changes}
    return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)


def layer_groups(model: nn.Module) -> list[list[str]] | None:
    """Parameter names by timm's own layer groups (stem, stages or blocks, head); None if timm has none."""
    if not isinstance(model, TimmWrapperForImageClassification):
        return None
    try:
        grouped = group_parameters(model.timm_model, model.timm_model.group_matcher(coarse=True))
    except (AttributeError, AssertionError, NotImplementedError):
        return None  # timm does not group all of its models
    return [[f"{PLACE}.{name}" for name in grouped[key]] for key in sorted(grouped)]


def network(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that holds a model's layers, and its name: timm's own module, or the model itself."""
    return (PLACE, model.timm_model) if isinstance(model, TimmWrapperForImageClassification) else ("", model)


def not_decayed(module: nn.Module) -> set[str]:
    """The parameters that timm excludes from weight decay; none for another model."""
    if not isinstance(module, TimmWrapperForImageClassification):
        return set()
    return {f"{PLACE}.{name}" for name in getattr(module.timm_model, "no_weight_decay", set)()}
