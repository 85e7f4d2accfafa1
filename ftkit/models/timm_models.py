"""timm's models as transformers wraps them: everything that differs from other models.

Classes, channels, size, normalisation and even the image processor are part of the model's config. The functions take
any model; each says what it returns for a model that is not timm's.
"""

import inspect
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

PREFIX = "timm/"  # before timm's names in recipes
# Arguments of `timm.create_model` that do not describe the network, or that transformers sets.
_FOREIGN = inspect.signature(timm.create_model).parameters.keys() - {"kwargs"} | {"num_classes", "features_only"}
CROP_MODES = {"squash": "squash", "crop": "center", "pad": "border"}  # what timm calls each `image_fit`
PLACE = "timm_model"  # the attribute of transformers' wrapper that holds timm's module


def preset_of(name: str) -> PretrainedCfg:
    """timm's settings for an architecture and a tag, or its default tag, such as input size and normalisation.

    Raises:
        UserError: timm does not know the tag.
    """
    name = name.removeprefix(PREFIX)
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError:
        architecture, tag = split_model_name_tag(name)
        tags = ", ".join(_tags(architecture))
        raise UserError(
            f"timm knows no weights {tag!r} of {architecture}: name one of its tags ({tags or 'it has none'}) or none"
        ) from None


def _tags(architecture: str) -> list[str]:
    """The tags of timm's weights for an architecture."""
    return [split_model_name_tag(name)[1] for name in timm.list_pretrained(f"{architecture}.*")]


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


def which_weights(name: str) -> str:
    """The name, with timm's default tag if it has none, and the tags with another normalisation, for messages."""
    architecture, tag = split_model_name_tag(name.removeprefix(PREFIX))
    if tag or not name.startswith(PREFIX):
        return name
    preset, tags = preset_of(name), _tags(architecture)
    others = [
        tag
        for tag in tags
        if (other := preset_of(f"{architecture}.{tag}")).mean != preset.mean or other.std != preset.std
    ]
    text = f"{name}.{preset.tag}, timm's default" if preset.tag else name
    return text + (f" (name the tag of your weights if it is {' or '.join(others)})" if others else "")


def build(
    name: str,
    side: tuple[int, int] | None,
    model_args: dict[str, Any] | None,
    labels: dict[str, Any],
    trained: bool = False,
) -> tuple[PreTrainedModel, TimmWrapperImageProcessor]:
    """`timm/<architecture>` with random weights, for the three channels that a `pipeline` feeds.

    Args:
        name: the architecture, with or without a tag.
        side: height and width of the input; None is that of timm's weights.
        model_args: options of `timm.create_model`.
        labels: `num_labels`, `id2label` and `label2id` of the config.
        trained: whether trained weights go into it, so that images are resized and cropped as for timm's weights
            instead of resized whole.

    Raises:
        UserError: timm does not accept the arguments, or does not know the tag.
    """
    architecture, preset = split_model_name_tag(name.removeprefix(PREFIX))[0], preset_of(name)
    model_args = dict(model_args or {})
    preprocessing: dict[str, Any] = {
        "input_size": [3, *(side or preset.input_size[1:])],
        "crop_pct": preset.crop_pct if trained else 1.0,
        "crop_mode": preset.crop_mode if trained else CROP_MODES["crop"],
        "mean": list(preset.mean),
        "std": list(preset.std),
        "interpolation": preset.interpolation,
    }
    if preset.fixed_input_size:
        model_args.setdefault("img_size", preprocessing["input_size"][1:])
    options: dict[str, Any] = {"model_args": model_args or None, "pretrained_cfg": preprocessing}
    config = TimmWrapperConfig(architecture=architecture, **options, **labels)
    try:
        model = TimmWrapperForImageClassification(config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(cannot_build(architecture, model_args, error)) from error
    # The initial weights are transformers', N(0, 0.02): resnet18 learned faster with them than with timm's (53% and
    # 43% with SGD, 54% and 49% with AdamW, on validation after 4 epochs of 5,000 CIFAR-10 images, one seed each).
    name_classes(model.config)
    return model, TimmWrapperImageProcessor(preprocessing, architecture=architecture)


def cannot_build(architecture: str, model_args: dict[str, Any], error: Exception) -> str:
    """The message for an error of timm while it builds a network."""
    return f"model: timm cannot build {architecture} with {model_args}: {' '.join(str(error).split())}"


def with_dropout(model_args: dict[str, Any] | None, dropout: float | None) -> dict[str, Any]:
    """`model_args` with the dropout before the head, timm's `drop_rate`.

    Raises:
        UserError: `model_args` have keys that do not describe the network.
    """
    given = dict(model_args or {})
    if foreign := given.keys() & _FOREIGN:
        rest = {key: value for key, value in given.items() if key not in foreign}
        raise UserError(
            f"model_args: {', '.join(sorted(foreign))}: the model and its weights are chosen by model, and the head "
            "by the data: leave it out",
            fix={"model_args": rest or None},
        )
    return given | ({} if dropout is None else {"drop_rate": dropout})


def keep_networks_args(config: PreTrainedConfig) -> None:
    """Delete from a timm model's own arguments what does not describe the network, such as its number of classes."""
    if isinstance(config, TimmWrapperConfig) and config.model_args:
        config.model_args = {key: value for key, value in config.model_args.items() if key not in _FOREIGN}


def name_classes(config: PreTrainedConfig) -> None:
    """Update the second list of class names in the config of a timm model; no change to another config."""
    if isinstance(config, TimmWrapperConfig):
        names: dict[Any, str] = dict(config.id2label or {})
        vars(config)["label_names"] = [names[i] for i in range(len(names))]


def is_config(config: PreTrainedConfig) -> bool:
    """Whether a model with this config needs timm."""
    return isinstance(config, TimmWrapperConfig)


def lives_in_config(processor: Any) -> bool:
    """Whether an image processor is saved in its model's config instead of its own file."""
    return isinstance(processor, TimmWrapperImageProcessor)


def pads_with_mean(processor: Any) -> bool:
    """Whether an image processor pads images with the mean that it normalises with."""
    return lives_in_config(processor) and processor.data_config["crop_mode"] == CROP_MODES["pad"]


def set_preprocessing(config: Any, changes: dict[str, Any]) -> TimmWrapperImageProcessor:
    """The image processor of a timm model with changes of its `pretrained_cfg`, which are also set in its `config`."""
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
