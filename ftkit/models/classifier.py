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
from transformers import PreTrainedModel

from ftkit.config import DataArguments, ModelArguments, weights_file
from ftkit.data.feeding.engine import load_images
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.images import ImageInfo, describe_images
from ftkit.data.pixels.kinds import in_colour
from ftkit.data.pixels.normalize import Normalize8Bit, PixelGeometry, channel_statistics, normalizer
from ftkit.places import clean_json
from ftkit.tasks import Task, task_of_config

from . import own, timm_models
from .anatomy import check_takes_images, whole_state
from .building import build_model
from .first_pass import check_channels, check_first_pass, check_size, warn_of_grey
from .fitting import geometry_of, log_fit, normalization_of, set_normalization
from .modeling_convnet import ConvNetForImageClassification
from .pretrained import load_saved
from .reshaping import channels_of, size_of

logger = logging.getLogger(__name__)
_PROBE = 64  # pixels: the side of the image that `size` is measured with
_FITTED = 5000 * 32 * 32  # pixels that a first layer is fitted to, which takes a few hundred bytes for each


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
        model, processor, in_order = build_model(args, task.config_options(), images, pretrained)
        classifier = cls(model, processor, needs_first_layer=not pretrained, in_order=in_order)
        classifier._choose_normalization(args, pretrained)
        check_channels(args.model, classifier.channels)
        if (geometry := geometry_of(processor)) is not None:
            log_fit(geometry, images.size)
        if classifier.channels == 1 and not isinstance(model.config, tuple(own.CONFIGS.values())):
            warn_of_grey(args.model)
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

        made_for = size_of(self.model)
        sizes = [made_for] if made_for is not None and pretrained and args.size is None else []
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
        if channels < self.channels and in_colour(images.values()):  # not in the sample of headers
            logger.info("  some images are in colour, so all are decoded to RGB")
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
        for name in ("config.json", "preprocessor_config.json"):  # a base model's may name its author's folders
            if (folder / name).is_file():
                clean_json(folder / name)

    def save_processor(self, folder: Path) -> None:
        """Save the file that `AutoImageProcessor` loads."""
        if timm_models.lives_in_config(self.processor):
            self.model.config.save_pretrained(folder)
        else:
            self.processor.save_pretrained(folder)

    def _choose_normalization(self, args: ModelArguments, pretrained: bool) -> None:
        """Set the mean and standard deviation of `args`, or keep the processor's, or leave them to `fit`."""
        file = weights_file(args.model)
        if args.image_mean is not None and args.image_std is not None:
            self._set_normalization(args.image_mean, args.image_std)
        elif file is not None and args.architecture in own.CONFIGS:
            self.needs_statistics = True
            logger.info(
                "normalisation: by mean and standard deviation of the training images, since %s gives none; "
                "image_mean and image_std set those that its weights were trained with", file
            )  # fmt: skip
        else:
            # timm pads images with the mean, so it must not change.
            self.needs_statistics = not pretrained and not timm_models.pads_with_mean(self.processor)
            if file is not None:
                logger.info(
                    "normalisation: mean %s and standard deviation %s, of %s; image_mean and image_std set others",
                    *(" ".join(f"{value:.3g}" for value in values) for values in normalization_of(self.processor)),
                    timm_models.which_weights(args.architecture or ""),
                )  # fmt: skip

    def _set_normalization(self, mean: list[float], std: list[float]) -> None:
        self.processor = set_normalization(self.model.config, self.processor, mean, std)
