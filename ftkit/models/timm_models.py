"""timm's models as transformers wraps them: all that differs from other models.

Their classes, channels, size and normalisation have places of their own, most of them in the model's config, which the
image processor is a part of. The functions take any model, and say what they give for one that is not timm's.
"""

from typing import Any

import timm
from timm.models import PretrainedCfg, group_parameters, split_model_name_tag
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)

from ftkit.errors import UserError

PREFIX = "timm/"  # of names
PLACE = "timm_model"  # of timm's own module inside transformers'


def _preset(name: str) -> PretrainedCfg:
    """What timm says of an architecture: the size and the normalisation that it was designed for."""
    return timm.get_pretrained_cfg(split_model_name_tag(name.removeprefix(PREFIX))[0]) or PretrainedCfg()


def usual_side(name: str) -> int:
    """The side of the images that `timm/<architecture>` is meant for, in pixels."""
    return _preset(name).input_size[-1]


def hub_name(name: str) -> str:
    """The name on the Hub of the trained weights of `timm/<architecture>`; without a tag, of timm's own choice.

    Raises:
        UserError: timm has none.
    """
    if "." in name:
        return name
    default = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    if default is None or not default.tag:
        raise UserError(
            f"model: timm has no trained weights of {name!r}: use method: scratch, or another architecture"
        )
    return f"{name}.{default.tag}"


def build(
    name: str, side: tuple[int, int], model_args: dict[str, Any] | None, labels: dict[str, Any]
) -> tuple[PreTrainedModel, TimmWrapperImageProcessor]:
    """`timm/<architecture>` with random weights, for three channels: `pipeline` feeds no others.

    Args:
        side: height and width of its input.
        model_args: of `timm.create_model`.
        labels: `num_labels`, `id2label` and `label2id` of the config.

    Raises:
        UserError: timm refuses the arguments.
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
        raise UserError(f"model: timm cannot build {architecture} with {model_args}: {error}") from error
    # The weights are transformers' own, N(0, 0.02): resnet18 learned faster from them than from timm's (53% against
    # 43% with SGD, 54% against 49% with AdamW, on validation after 4 epochs of 5,000 CIFAR-10 images, one seed each).
    name_classes(model)
    return model, TimmWrapperImageProcessor(preprocessing, architecture=architecture)


def with_dropout(model_args: dict[str, Any] | None, dropout: float | None) -> dict[str, Any]:
    """`model_args` with the dropout before the head, which timm calls `drop_rate`."""
    return dict(model_args or {}) | ({} if dropout is None else {"drop_rate": dropout})


def overrides(config: PreTrainedConfig, model_args: dict[str, Any]) -> dict[str, Any] | None:
    """What `model_args` change in the config of a timm model; None for the config of another model."""
    if not isinstance(config, TimmWrapperConfig):
        return None
    return {"model_args": {**(config.model_args or {}), **model_args}} if model_args else {}


def name_classes(model: PreTrainedModel) -> None:
    """Update the second list of class names, which only the config of a timm model has."""
    if isinstance(model.config, TimmWrapperConfig):
        names: dict[Any, str] = dict(model.config.id2label or {})
        model.config.label_names = [names[i] for i in range(len(names))]


def is_config(config: PreTrainedConfig) -> bool:
    """Whether a model of this config needs timm."""
    return isinstance(config, TimmWrapperConfig)


def channels(config: PreTrainedConfig) -> int | None:
    """The number of channels that a timm model takes; None for the config of another model."""
    return (config.model_args or {}).get("in_chans", 3) if isinstance(config, TimmWrapperConfig) else None


def lives_in_config(processor: Any) -> bool:
    """Whether an image processor is a part of its model's config, without a file of its own."""
    return isinstance(processor, TimmWrapperImageProcessor)


def normalizing(config: Any, mean: list[float], std: list[float]) -> TimmWrapperImageProcessor:
    """The image processor of a timm model with another normalisation, which is set in its `config` too."""
    config.pretrained_cfg = {**config.pretrained_cfg, "mean": mean, "std": std}
    return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)


def head(model: nn.Module) -> nn.Module | None:
    """The module that gives a timm model's logits; None for another model."""
    return model.timm_model.get_classifier() if isinstance(model, TimmWrapperForImageClassification) else None


def layer_groups(model: nn.Module) -> list[list[str]] | None:
    """Parameter names by layer group as timm has them: stem, stages or blocks, head; None where it has none."""
    if not isinstance(model, TimmWrapperForImageClassification):
        return None
    try:
        grouped = group_parameters(model.timm_model, model.timm_model.group_matcher(coarse=True))
    except (AttributeError, AssertionError, NotImplementedError):
        return None  # timm does not group every one of its models
    return [[f"{PLACE}.{name}" for name in grouped[key]] for key in sorted(grouped)]


def network(model: nn.Module) -> tuple[str, nn.Module]:
    """The module in which a model's layers lie side by side, and its place: timm's own, or the model itself."""
    return (PLACE, model.timm_model) if isinstance(model, TimmWrapperForImageClassification) else ("", model)


def not_decayed(module: nn.Module) -> set[str]:
    """The parameters of a timm model that timm keeps from weight decay; none of another module."""
    if not isinstance(module, TimmWrapperForImageClassification):
        return set()
    return {f"{PLACE}.{name}" for name in getattr(module.timm_model, "no_weight_decay", set)()}
