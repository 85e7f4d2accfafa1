"""Models for a run: ftkit's own and timm's architectures with random weights, those of a file, or saved models."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor

from ftkit.config import ModelArguments, local_model, weights_file
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError

from . import own, timm_models
from .anatomy import name_head
from .fitting import fit_processor
from .pretrained import check_keys, load_for_classes, shaped
from .reshaping import divided
from .weights import load_weights

logger = logging.getLogger(__name__)
_PHOTOGRAPH = 224  # pixels: images of one size keep it up to here


def build_model(
    args: ModelArguments, labels: dict[str, Any], images: ImageInfo, pretrained: bool
) -> tuple[PreTrainedModel, Any, dict[str, str]]:
    """The model, its image processor, and the names in a weights file of the tensors matched by order.

    Args:
        args: see `Classifier.build`, like `images` and `pretrained`.
        labels: the options of the config that depend on the task, see `Task.config_options`.

    Raises:
        UserError: the model does not take these arguments, or cannot be loaded.
    """
    if (file := weights_file(args.model)) is not None:
        return _with_weights(args, file, labels, images)
    return *_architecture(args, labels, images, pretrained), {}


def _architecture(
    args: ModelArguments, labels: dict[str, Any], images: ImageInfo, pretrained: bool, for_weights: bool = False
) -> tuple[PreTrainedModel, Any]:
    """The model and its image processor; `for_weights` if trained weights from a file go into it."""
    named = local_model(args.model) is None
    if named and args.model in own.CONFIGS:
        model, processor = _own_model(args, labels, images)
    elif named and args.model.startswith(timm_models.PREFIX) and not pretrained:
        model_args = timm_models.with_dropout(args.model_args, args.dropout)
        usual = timm_models.preset_of(args.model).input_size[-1]
        side = args.size if for_weights else _side(args, images, otherwise=usual)
        model, processor = timm_models.build(args.model, side, model_args, labels, trained=for_weights)
    else:
        return load_for_classes(args, labels, pretrained)
    name_head(model, args.head)
    return model, fit_processor(model.config, processor, None, args.image_fit)


def _with_weights(
    args: ModelArguments, file: Path, labels: dict[str, Any], images: ImageInfo
) -> tuple[PreTrainedModel, Any, dict[str, str]]:
    """The architecture with the weights of a file, resampled if they were made for another input."""
    asked = dataclasses.replace(args, model=args.architecture or "", architecture=None)
    model, processor = _architecture(asked, labels, images, pretrained=False, for_weights=True)
    try:
        return model, processor, load_weights(model, file)
    except UserError as error:
        kept, shaping = divided(model.config, args.model_args or {})
        plain = dataclasses.replace(asked, image_size=None, model_args=kept or None)
        if plain == asked:
            raise
        model, processor = _architecture(plain, labels, images, pretrained=False, for_weights=True)
        try:
            in_order = load_weights(model, file)
        except UserError:
            raise error from None
    return *shaped(model, processor, args, shaping), in_order


def _own_model(args: ModelArguments, labels: dict[str, Any], images: ImageInfo) -> tuple[PreTrainedModel, Any]:
    config_class = own.CONFIGS[args.model]
    check_keys(args.model, args.model_args, config_class())
    height, width = _side(args, images, otherwise=64)
    settings: dict[str, Any] = {"num_channels": images.channels}
    if "image_size" in config_class().to_dict():
        settings["image_size"] = [height, width]
    if args.dropout is not None:
        settings["dropout"] = args.dropout
    try:
        config = config_class(**{**settings, **(args.model_args or {})}, **labels)
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"model_args: {error}") from None
    processor = ViTImageProcessor(size={"height": height, "width": width}, do_convert_rgb=True)
    return AutoModelForImageClassification.from_config(config), processor


def _side(args: ModelArguments, images: ImageInfo, otherwise: int) -> tuple[int, int]:
    """Height and width: `image_size`, or the size of the data if it is small, or `otherwise`, which is logged."""
    if args.size is not None:
        return args.size
    if images.size is not None and max(images.size) <= max(_PHOTOGRAPH, otherwise):
        return images.size
    height, width = images.size or (0, 0)
    what = f"images of {height:,} x {width:,} pixels are large" if images.size else "images differ in size"
    logger.info(
        "the %s and are resized to %d x %d, usual for %s; image_size sets another", what, otherwise, otherwise,
        args.model,
    )  # fmt: skip
    return otherwise, otherwise
