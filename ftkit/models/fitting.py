"""How an image processor fits images of any shape to one size: detected with probe images, and changed."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers import PreTrainedConfig

from ftkit.data.pixels.normalize import PixelGeometry
from ftkit.errors import UserError

from . import timm_models
from .first_pass import reason

MEANINGS = {
    "squash": "squashed, which changes their aspect ratio",
    "crop": "cropped at the centre",
    "pad": "padded at their borders",
}
logger = logging.getLogger(__name__)
_ASPECT = 4  # the probe's aspect ratio over the target's, so that a crop leaves out both of its ends
_LEAST = 4  # pixels: on smaller targets, the ends of the probe cannot be distinguished


class Geometry(NamedTuple):
    """The (height, width) in pixels of a processor's output, and how it fits images of other shapes."""

    size: tuple[int, int]
    fit: str


def geometry_of(processor: Any) -> Geometry | None:
    """The geometry of `processor`; None if the size of its output depends on the image."""
    geometry = PixelGeometry(processor)
    shapes = {geometry([Image.new("RGB", size)]).shape[2:] for size in ((96, 96), (192, 48), (48, 192))}
    if len(shapes) > 1:
        return None
    height, width = shapes.pop()
    return Geometry((height, width), _fit(geometry, height, width))


def _fit(geometry: PixelGeometry, height: int, width: int) -> str:
    """Detect the fit with a wide image, green with a red left end and a blue right end."""
    tall = 64
    wide = max(round(tall * width / height * _ASPECT), 8)
    probe = np.zeros((tall, wide, 3), np.uint8)
    probe[..., 1] = 255
    probe[:, : wide // 4], probe[:, -(wide // 4) :] = (255, 0, 0), (0, 0, 255)
    seen = geometry([Image.fromarray(probe)])[0].astype(int)
    green = seen[1, :, width // 2] > 128
    if not (seen[0] - seen[1] > 128).any():
        return "crop"
    return "squash" if green.all() else "pad"


def fit_processor(config: PreTrainedConfig, processor: Any, size: tuple[int, int] | None, fit: str | None) -> Any:
    """`processor` with another output size or fit; those of a timm model are also set in its `config`.

    Args:
        config: the config of the model.
        processor: the model's image processor, whose normalisation stays.
        size: height and width in pixels; None keeps the size.
        fit: `squash`, `crop` or `pad`; None keeps the current fit if the new size allows it.

    Raises:
        UserError: this kind of processor cannot do that, or the size of its output depends on the image.
    """
    kind = type(processor).__name__
    try:
        now = geometry_of(processor)
    except RuntimeError as error:  # torch cannot resize to 1 x 1
        raise UserError(
            f"image_size: {kind} cannot resize images to its size ({reason(error)}): set image_size to 8",
            fix={"image_size": 8},
        ) from error
    if now is None and (size is None or fit is None):
        size, fit = size or size_of_square(processor), fit or "crop"
        raise UserError(
            f"image_fit: {kind}, which is saved with the model, gives images of different sizes, but a batch needs "
            f"one size: set image_fit to {fit} and image_size to {size[0]} {size[1]}",
            fix={"image_fit": fit, "image_size": list(size)},
        )
    wanted = Geometry(size or now.size, fit or now.fit) if now is not None else Geometry(size, fit)  # type: ignore[arg-type]
    if wanted == now:
        return processor
    if timm_models.lives_in_config(processor):
        whole = {} if now is not None and now.fit == wanted.fit else {"crop_pct": 1.0}  # a new fit uses all pixels
        mode = timm_models.CROP_MODES[wanted.fit]
        changes = {"input_size": [3, *wanted.size], "crop_mode": mode, **whole}
        return timm_models.set_preprocessing(config, changes)
    others = [other for other in MEANINGS if other != wanted.fit]
    # Without image_fit, a processor that cannot keep its fit at the new size, such as ConvNeXt's, may change it.
    for other in [wanted.fit] if fit else [wanted.fit, *others]:
        if (found := _with_settings(processor, now, Geometry(wanted.size, other))) is not None:
            return found
    tried = others if fit else []  # without image_fit, all have failed above
    can = [other for other in tried if _with_settings(processor, now, Geometry(wanted.size, other)) is not None]
    raise UserError(
        f"image_fit: {kind}, which is saved with the model, cannot {wanted.fit} images to "
        f"{wanted.size[0]} x {wanted.size[1]} pixels: {f'set it to {can[0]}' if can else 'leave image_size out'}",
        fix={"image_fit": can[0]} if can else {"image_size": None},
    )


def log_fit(geometry: Geometry, shape: tuple[int, int] | None) -> None:
    """Log how images are fitted, unless all have the target's aspect ratio.

    Args:
        geometry: the geometry of the image processor.
        shape: height and width of all images; None if they differ.
    """
    (height, width), fit = geometry
    if shape is None or shape[0] * width != shape[1] * height:
        others = ", ".join(other for other in MEANINGS if other != fit)
        logger.info(
            "images of other shapes than %d x %d are %s (image_fit: %s; others: %s)",
            height, width, MEANINGS[fit], fit, others,
        )  # fmt: skip


def _with_settings(processor: Any, now: Geometry | None, wanted: Geometry) -> Any | None:
    """The processor with the first of `_settings` that gives the wanted geometry; None if none does."""
    for settings in _settings(processor.to_dict(), now, wanted):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # settings that this kind refuses
            candidate = type(processor).from_dict({**processor.to_dict(), **settings})
            found = geometry_of(candidate)
            if found == wanted or (found is not None and found.size == wanted.size and min(found.size) < _LEAST):
                return candidate
    return None


def _settings(saved: dict[str, Any], now: Geometry | None, wanted: Geometry) -> Iterator[dict[str, Any]]:
    """Settings of transformers' processors to try, in this order."""
    height, width = wanted.size
    target = {"height": height, "width": width}
    whole: dict[str, Any] = {"do_resize": True, "do_pad": False}
    if now is not None and now.fit == wanted.fit:  # in proportion: 256 cropped to 224 becomes 128 cropped to 112
        by = {"height": height / now.size[0], "width": width / now.size[1]}
        sides = {
            key: round(side * by.get(key, max(wanted.size) / max(now.size))) for key, side in saved["size"].items()
        }
        crop = {"crop_size": target} if saved.get("do_center_crop") else {}
        yield {"do_resize": True, "size": sides, **crop}
    if wanted.fit == "squash":
        yield {**whole, "size": target, "do_center_crop": False}
        yield {**whole, "size": {"shortest_edge": max(wanted.size)}, "do_center_crop": False}
    elif wanted.fit == "crop":
        yield {**whole, "size": {"shortest_edge": max(wanted.size)}, "do_center_crop": True, "crop_size": target}
        yield {**whole, "size": {"shortest_edge": max(wanted.size)}, "do_center_crop": False}
    else:  # a crop larger than the image pads it; do_pad would pad after the normalisation
        largest = {"max_height": height, "max_width": width}
        yield {**whole, "size": largest, "do_center_crop": True, "crop_size": target}


def size_of_square(processor: Any) -> tuple[int, int]:
    """Height and width of a processor's output for a square image."""
    height, width = PixelGeometry(processor)([Image.new("RGB", (96, 96))]).shape[2:]
    return height, width


def set_normalization(config: PreTrainedConfig, processor: Any, mean: list[float], std: list[float]) -> Any:
    """The processor with this mean and standard deviation; a timm model keeps them in `config`.

    One number is repeated for three channels, as a `pipeline` feeds RGB.
    """
    mean, std = (list(values) * (3 // len(values)) for values in (mean, std))
    if timm_models.lives_in_config(processor):
        return timm_models.set_preprocessing(config, {"mean": mean, "std": std})
    processor.image_mean, processor.image_std = mean, std
    return processor


def normalization_of(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, per channel, that an image processor normalises pixels in 0..1 with."""
    if timm_models.lives_in_config(processor):
        return processor.data_config["mean"], processor.data_config["std"]
    return (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)


def average_normalization(config: Any, processor: Any) -> Any:
    """The processor with mean and standard deviation averaged over channels, for a model changed to one channel."""
    averaged = ([sum(values) / len(values)] for values in normalization_of(processor))
    return set_normalization(config, processor, *averaged)
