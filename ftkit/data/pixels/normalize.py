"""The two parts of an image processor: resizing, once while decoding, and normalising, on every batch.

Neither is reimplemented here. A processor maps 8-bit pixels to numbers by a scale and an offset for each channel; both
are measured on a black and a white image, and inverted to get the resized 8-bit pixels from the processor's output. So
training sees what a plain `pipeline`, which feeds RGB images to the same processor, will see.
"""

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose
from transformers import TimmWrapperImageProcessor

from ftkit.errors import UserError

_PROBE = 64  # side of the images that a processor is probed with, in pixels
_COUNTED = 1 << 26  # bytes of pixels that are counted together


class Normalize8Bit:
    """uint8 (B, C, H, W) -> float32: times `scale` plus `offset` by channel; one channel broadcasts to three."""

    def __init__(self, scale: torch.Tensor, offset: torch.Tensor):
        self.scale, self.offset = scale.view(1, -1, 1, 1), offset.view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.scale.device != images.device:
            self.scale, self.offset = self.scale.to(images.device), self.offset.to(images.device)
        return (images.to(torch.float32) * self.scale).add_(self.offset)  # addcmul is slow over (1, C, 1, 1)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in the layout that is fastest for convolutions, which keep it through the network."""
    _, channels, height, width = images.shape
    if channels == 1:  # torch sees both layouts as the same, and would choose the other
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)


def normalizer(processor: Any, channels: int) -> Normalize8Bit:
    """The arithmetic of `processor` on 8-bit pixels, for a model with 1 or 3 channels.

    Raises:
        UserError: the arithmetic is more than a scale and an offset by channel.
    """
    side = (_PROBE, _PROBE)
    black, white = (_process(processor, [Image.new("RGB", side, color)])[0] for color in ("black", "white"))
    row, column = black.shape[1] // 2, black.shape[2] // 2
    offset = black[:, row, column]
    normalize = Normalize8Bit((white[:, row, column] - offset) / 255, offset)
    values = _process(processor, [_noise(*side)])
    error = (normalize(_to_8_bit(values, normalize)) - values).abs().max() / normalize.scale.abs().max()
    if error > 0.51:
        raise UserError(
            f"{type(processor).__name__} does more to pixels than resize, scale and shift them (it is off by "
            f"{error:.1f} of 255 steps), so ftkit cannot train with it: use a model with another image processor"
        )
    return Normalize8Bit(normalize.scale.flatten()[:channels], normalize.offset.flatten()[:channels])


class PixelGeometry:
    """The resizing and cropping of `processor`: n images, all grey or all RGB -> uint8 (n, C, H, W).

    Tests once for each size, with noise, whether the processor leaves images of that size unchanged.
    """

    def __init__(self, processor: Any):
        # A copy: the run's processor gets the mean of the data later, while decoding continues.
        self.processor, self.normalize = copy.deepcopy(processor), normalizer(processor, 3)
        self.unchanged: dict[tuple[int, int], bool] = {}
        self.resized: Callable[[list[Image.Image]], np.ndarray] = self._from_values
        probe, shorter = [_noise(_PROBE, _PROBE - 3)], _without_arithmetic(self.processor)
        with contextlib.suppress(TypeError):  # raised by processors that normalise anyway, and need floats
            if np.array_equal(shorter(probe), self._from_values(probe)):
                self.resized = shorter

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        sizes = {image.size for image in images}
        if len(sizes) == 1 and self._leaves_alone(sizes.pop()):
            return _as_arrays(images)
        return self._transform(images)

    def _leaves_alone(self, size: tuple[int, int]) -> bool:
        if size not in self.unchanged:
            probe = [_noise(*size)]
            self.unchanged[size] = np.array_equal(self._transform(probe), _as_arrays(probe))
        return self.unchanged[size]

    def _transform(self, images: list[Image.Image]) -> np.ndarray:
        pixels = self.resized(images)
        return pixels[:, :1] if images[0].mode == "L" else pixels

    def _from_values(self, images: list[Image.Image]) -> np.ndarray:
        return _to_8_bit(_process(self.processor, images), self.normalize).numpy()


def _without_arithmetic(processor: Any) -> Callable[[list[Image.Image]], np.ndarray]:
    """`processor` without its conversion to float and back: a guess by its kind, which `PixelGeometry` verifies."""
    if isinstance(processor, TimmWrapperImageProcessor):  # the last two transforms: to tensor, normalise
        resize = Compose(processor.val_transforms.transforms[:-2])
        return functools.partial(_resize_each, resize)
    return functools.partial(_resize_all, processor)


def _resize_each(resize: Callable[[Image.Image], Image.Image], images: list[Image.Image]) -> np.ndarray:
    return _as_arrays([resize(_rgb(image)) for image in images])


def _resize_all(processor: Any, images: list[Image.Image]) -> np.ndarray:
    return _process(processor, images, do_rescale=False, do_normalize=False).numpy()


def _process(processor: Any, images: list[Image.Image], **options: Any) -> torch.Tensor:
    """float32 (n, 3, H, W), as in `pipeline`."""
    return processor([_rgb(image) for image in images], return_tensors="pt", **options)["pixel_values"]


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: torch.Tensor, normalize: Normalize8Bit) -> torch.Tensor:
    return ((values - normalize.offset) / normalize.scale).round().clamp(0, 255).to(torch.uint8)


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _as_arrays(images: list[Image.Image]) -> np.ndarray:
    arrays = np.stack([np.asarray(image) for image in images])
    return arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2)


def histogram(images: torch.Tensor | np.ndarray) -> np.ndarray:
    """Counts of each value in each channel of uint8 (N, C, H, W): int64 (C, 256)."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for some in torch.as_tensor(images).split(max(_COUNTED // max(images[:1].nbytes, 1), 1)):
        channels = some.transpose(0, 1).flatten(1)  # a copy
        counts += np.stack([torch.bincount(values, minlength=256).cpu().numpy() for values in channels])
    return counts


def channel_statistics(counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel from a `histogram`, for pixels in 0..1, rounded to 4 places."""
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 1e-8))
    return [round(float(m), 4) for m in mean], [max(round(float(s), 4), 1e-4) for s in std]


def geometry_key(processor: Any) -> str:
    """Everything about a processor that shapes the pixels: all but the normalisation, unless timm pads with it."""
    statistics = ("mean", "std", "image_mean", "image_std")

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            pads = value.get("crop_mode") == "border"
            return {key: strip(inner) for key, inner in sorted(value.items()) if pads or key not in statistics}
        return value

    return json.dumps(strip(processor.to_dict()), default=str)
