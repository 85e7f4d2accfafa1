"""A classifier: a model with its image processor, built from a recipe, loaded and saved as one object."""

import dataclasses
import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from datasets import DatasetDict
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor

from ftkit.config import DataArguments, ModelArguments, local_model, weights_file
from ftkit.data.feeding.engine import load_images
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.images import ImageInfo, describe_images
from ftkit.data.pixels.kinds import in_colour
from ftkit.data.pixels.normalize import Normalize8Bit, PixelGeometry, channel_statistics, normalizer
from ftkit.errors import UserError
from ftkit.places import clean_json
from ftkit.tasks import Task, task_of_config

from . import own, timm_models
from .anatomy import check_takes_images, name_head, whole_state
from .first_pass import check_channels, check_first_pass, check_size, say_grey
from .fitting import fit_processor, geometry_of, say_fit, set_normalization
from .modeling_convnet import ConvNetForImageClassification
from .pretrained import check_keys, load_for_classes, load_saved
from .reshaping import channels_of, reshaped, size_of
from .weights import load_weights

logger = logging.getLogger(__name__)
_PROBE = 64  # pixels: the side of the image that `size` is measured with
_FITTED = 5000 * 32 * 32  # pixels that a first layer is fitted to, which takes a few hundred bytes for each
_PHOTOGRAPH = 224  # pixels: images of one size keep it up to here


@dataclass(eq=False)
class Classifier:
    """A model with its image processor. A new one is on the CPU.

    Attributes:
        model: the model, whose config holds the task. With adapters, it is wrapped in a `PeftModel`.
        processor: the image processor, which turns images into the model's input.
        needs_statistics: whether `fit` must still measure the mean and standard deviation of the training images.
        needs_first_layer: whether `fit` may still fit the first layer.
        in_order: the name in a weights file of each tensor that was matched by its order.
    """

    model: PreTrainedModel | PeftModel
    processor: Any
    needs_statistics: bool = False
    needs_first_layer: bool = False
    in_order: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_takes_images(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    @classmethod
    def build(cls, args: ModelArguments, task: Task, images: ImageInfo, pretrained: bool) -> Self:
        """Build or load a classifier for `task`. Call `fit` before using it.

        Args:
            args: `model` is one of ftkit's own, `timm/<architecture>`, a name on the Hub, a local folder, or a weights
                file for `architecture`.
            task: the task of the data, which goes into the model's config.
            images: size and channels of the data, for models without a size of their own.
            pretrained: whether to load trained weights, with a new head if the classes differ; otherwise only the
                architecture is taken, with random weights.

        Raises:
            UserError: the model does not take these arguments, or cannot be loaded.
        """
        labels, in_order = task.config_options(), dict[str, str]()
        file = weights_file(args.model)
        if file is None:
            model, processor = _model_and_processor(args, labels, images, pretrained)
            name_head(model, args.head)
        else:
            model, processor, in_order = _with_weights(args, file, labels, images)
        classifier = cls(model, processor, needs_first_layer=not pretrained, in_order=in_order)
        if args.image_mean is not None and args.image_std is not None:
            classifier._set_normalization(args.image_mean, args.image_std)
        elif file is not None and args.architecture in own.CONFIGS:
            classifier.needs_statistics = True
            logger.info(
                "normalisation: by mean and standard deviation of the training images, since %s gives none; "
                "image_mean and image_std set those that its weights were trained with", file
            )  # fmt: skip
        else:
            # timm pads with the mean, so that the images depend on it.
            classifier.needs_statistics = not pretrained and not timm_models.pads_with_mean(processor)
            if file is not None:
                _say_normalisation(args.architecture or "", normalizer(processor, 3))
        check_channels(args.model, classifier.channels)
        if (geometry := geometry_of(processor)) is not None:
            say_fit(geometry, images.size)
        if classifier.channels == 1 and args.model not in own.CONFIGS:
            say_grey(args.model)
        return classifier

    @classmethod
    def load(cls, model: str, revision: str | None = None, trust_remote_code: bool = False) -> Self:
        """Load a saved classifier in float32 from a folder, a run or the Hub; adapters on top of their base model.

        Raises:
            UserError: the model does not exist, cannot be loaded, or does not take the images of its processor.
        """
        classifier = cls(*load_saved(model, revision, trust_remote_code))
        check_size(model, classifier.model, classifier.channels, classifier.size)
        return classifier

    def check(
        self, args: ModelArguments, task: Task, images: ImageInfo, pretrained: bool, pixels: torch.Tensor
    ) -> None:
        """Check that the model can be trained on images like these; the other arguments are those of `build`.

        Args:
            pixels: uint8 (2, C, H, W), two of the training images.

        Raises:
            UserError: see `check_first_pass`.
        """

        def again(size: tuple[int, int]) -> PreTrainedModel | PeftModel:
            if size_of(self.model) is None:
                return self.model
            sized = dataclasses.replace(args, image_size=list(size))
            return Classifier.build(sized, task, images, pretrained).model

        own = size_of(self.model)
        sizes = [own] if own is not None and pretrained and args.size is None else []
        values = normalizer(self.processor, self.channels)(pixels)
        check_first_pass(args.model, self.model, values, None if pretrained and args.size else sizes, again)

    def fit(self, train: Images) -> None:
        """Fit what the recipe and the weights leave open to the training images.

        These are the normalisation, unless recipe or weights give it, and the first layer of a new `convnet`, which is
        fitted to up to 5,000 images, fewer if these are larger than 32 x 32 pixels.
        """
        if self.needs_statistics:
            self._set_normalization(*channel_statistics(train.histogram()))
            self.needs_statistics = False
        if self.needs_first_layer:
            self.needs_first_layer = False
            if isinstance(self.model, ConvNetForImageClassification):
                most = max(min(5000, _FITTED // math.prod(train.shape[1:])), 1)
                self.model.fit_first_layer(self.normalize(train.sample(most)))

    @functools.cached_property
    def normalize(self) -> Normalize8Bit:
        """The module that turns 8-bit pixels into the model's input.

        Raises:
            RuntimeError: `fit` must be called first.
            UserError: the processor does more than scale and shift each channel.
        """
        if self.needs_statistics or self.needs_first_layer:
            raise RuntimeError("this classifier is not ready: call fit(<the training images>) first")
        return normalizer(self.processor, self.channels)

    @functools.cached_property
    def geometry(self) -> PixelGeometry:
        """The resizing and cropping of images to 8-bit pixels."""
        return PixelGeometry(self.processor)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels."""
        height, width = self.geometry([Image.new("L", (_PROBE, _PROBE))]).shape[2:]
        return height, width

    @functools.cached_property
    def task(self) -> Task:
        """The task that the model was trained for, from its config."""
        return task_of_config(self.model.config)

    @property
    def channels(self) -> int:
        """The number of channels of `pixel_values`: 1 or 3."""
        return channels_of(self.model.config)

    def channels_of(self, images: ImageInfo) -> int:
        """The number of channels to decode images to: grey images stay grey, even for a model of three channels."""
        return min(images.channels, self.channels)

    def images_of(self, splits: DatasetDict, args: DataArguments, seed: int) -> dict[str, Images]:
        """The images of every split as the model takes them, in grey only if the images of all splits are grey.

        Args:
            splits: the splits, with the columns `image`, `label`, `index`.
            seed: the seed of `image_transform`.

        Raises:
            UserError: images that do not decode, or a full disk.
        """
        info = describe_images(next(iter(splits.values())))
        channels = self.channels_of(info)
        images = load_images(splits, self.processor, channels, args, seed)
        if channels < self.channels and in_colour(images.values()):  # which the sample of headers did not show
            images = load_images(splits, self.processor, self.channels, args, seed)
        return images

    @property
    def has_adapters(self) -> bool:
        """Whether the model has adapters, which are saved without the model's own weights."""
        return isinstance(self.model, PeftModel)

    def save(self, folder: Path) -> None:
        """Save weights (safetensors), config and image processor, for `from_pretrained` and `pipeline`.

        The weights of a model with adapters are those of the adapters and the head; the config is that of the model.
        """
        if not isinstance(self.model, PeftModel):
            self.model.save_pretrained(str(folder), state_dict=whole_state(self.model))
        else:
            self.model.save_pretrained(str(folder))
            base: Any = self.model.get_base_model()
            base.config.save_pretrained(folder)
            (folder / "README.md").unlink()  # PEFT's is a template to fill in
        self.save_processor(folder)
        for name in ("config.json", "preprocessor_config.json"):  # a base's may name its author's folders
            if (folder / name).is_file():
                clean_json(folder / name)

    def save_processor(self, folder: Path) -> None:
        """Save the file that `AutoImageProcessor` loads."""
        if timm_models.lives_in_config(self.processor):
            self.model.config.save_pretrained(folder)
        else:
            self.processor.save_pretrained(folder)

    def _set_normalization(self, mean: list[float], std: list[float]) -> None:
        self.processor = set_normalization(self.model.config, self.processor, mean, std)


def _say_normalisation(architecture: str, normalize: Normalize8Bit) -> None:
    """Log by which numbers the pixels for the weights of a file are normalised, and whose they are."""
    std = 1 / (255 * normalize.scale.flatten())
    numbers = [
        " ".join(f"{number:.3g}" for number in values.tolist()) for values in (-normalize.offset.flatten() * std, std)
    ]
    logger.info(
        "normalisation: mean %s and standard deviation %s, of %s; image_mean and image_std set others",
        *numbers, timm_models.which_weights(architecture),
    )  # fmt: skip


def _model_and_processor(
    args: ModelArguments, labels: dict[str, Any], images: ImageInfo, pretrained: bool, for_weights: bool = False
) -> tuple[PreTrainedModel, Any]:
    """The model and its image processor; `for_weights` if trained weights from a file go into it."""
    if local_model(args.model) is None and args.model in own.CONFIGS:
        return _own_model(args, labels, images)
    if local_model(args.model) is None and args.model.startswith(timm_models.PREFIX) and not pretrained:
        model_args = timm_models.with_dropout(args.model_args, args.dropout)
        if for_weights:
            model, processor = timm_models.build_for_weights(args.model, args.size, model_args, labels)
        else:
            side = _side(args, images, otherwise=timm_models.usual_side(args.model))
            model, processor = timm_models.build(args.model, side, model_args, labels)
        return model, fit_processor(model.config, processor, None, args.image_fit)
    return load_for_classes(args, labels, pretrained)


def _with_weights(
    args: ModelArguments, file: Path, labels: dict[str, Any], images: ImageInfo
) -> tuple[PreTrainedModel, Any, dict[str, str]]:
    """The architecture with the weights of a file, which are resampled if they are made for another size."""
    named = dataclasses.replace(args, model=args.architecture or "", architecture=None)
    model, processor = _model_and_processor(named, labels, images, pretrained=False, for_weights=True)
    name_head(model, args.head)
    size = size_of(model)
    try:
        return model, processor, load_weights(model, file)
    except UserError:
        if size is None or args.size is None:
            raise
        usual = dataclasses.replace(named, image_size=None)
        model, processor = _model_and_processor(usual, labels, images, pretrained=False, for_weights=True)
        if size_of(model) == size:
            raise
    name_head(model, args.head)
    in_order = load_weights(model, file)
    model = reshaped(model, args, {})
    return model, fit_processor(model.config, processor, size, args.image_fit), in_order


def _own_model(args: ModelArguments, labels: dict[str, Any], images: ImageInfo) -> tuple[PreTrainedModel, Any]:
    config_class = own.CONFIGS[args.model]
    inherited = {field.name for field in dataclasses.fields(config_class.__mro__[1])}
    fields = [field.name for field in dataclasses.fields(config_class) if field.name not in inherited]
    check_keys(args.model, args.model_args, fields)
    height, width = _side(args, images, otherwise=64)
    settings: dict[str, Any] = {"num_channels": images.channels}
    if "image_size" in fields:
        settings["image_size"] = [height, width]
    if args.dropout is not None:
        settings["dropout"] = args.dropout
    try:
        config = config_class(**{**settings, **(args.model_args or {})}, **labels)
    except ValueError as error:
        raise UserError(f"model_args: {error}") from None
    model = AutoModelForImageClassification.from_config(config)
    processor = ViTImageProcessor(size={"height": height, "width": width}, do_convert_rgb=True)
    return model, fit_processor(config, processor, None, args.image_fit)


def _side(args: ModelArguments, images: ImageInfo, otherwise: int) -> tuple[int, int]:
    """Height and width: `image_size`, or the size of the data if it is small, or `otherwise`, which is logged."""
    if args.size is not None:
        return args.size
    if images.size is not None and max(images.size) <= max(_PHOTOGRAPH, otherwise):
        return images.size
    what = "images differ in size" if images.size is None else f"images of {_by(images.size)} pixels are large"
    usual = _by((otherwise, otherwise))
    logger.info("the %s and are resized to %s, usual for %s; image_size sets another", what, usual, args.model)
    return otherwise, otherwise


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"
