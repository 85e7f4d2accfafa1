"""TrivialAugment on a batch."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TV

from ftkit.data.augmentation.pixel_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    blend,
    real,
    shift,
    warp,
)

# The operations of TrivialAugment take a magnitude for each image, float64 (B,).


def shear_x(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Move rows left by `magnitude` times their distance from the top edge."""
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    middle = magnitude * images.shape[2] / 2
    return warp(images, torch.stack([one, magnitude, zero, one], 1), torch.stack([-middle, zero], 1))


def shear_y(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Move columns up by `magnitude` times their distance from the left edge."""
    return shear_x(images.mT, magnitude).mT


def translate_x(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Move right by `magnitude` pixels, rounded towards zero."""
    most = min(32, images.shape[3])
    right = magnitude.long().clamp(-most, most)
    return shift(images, torch.stack([torch.zeros_like(right), -right], 1), (0, most))


def translate_y(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Move down by `magnitude` pixels, rounded towards zero."""
    return translate_x(images.mT, magnitude).mT


def rotate(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Rotate counter-clockwise by `magnitude` degrees."""
    cosine, sine = torch.deg2rad(magnitude).cos(), torch.deg2rad(magnitude).sin()
    return warp(images, torch.stack([cosine, -sine, sine, cosine], 1), magnitude.new_zeros(len(images), 2))


def sharpness(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Blend with the blurred image: a negative magnitude blurs, a positive one sharpens."""
    return blend(images, _blurred(images), 1 + magnitude)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """`TV.adjust_sharpness(images, 0.0)`, without its kernel copy to the device that makes the host wait."""
    if min(images.shape[2:]) < 3:
        return images
    values = images.float()
    kernel = values.new_full((images.shape[1], 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1].fill_(5 / 13)
    values[:, :, 1:-1, 1:-1] = F.conv2d(values, kernel, groups=images.shape[1]).round_()
    return values.to(torch.uint8)


def posterize(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Keep only the `magnitude` highest bits of each pixel."""
    lost = (8 - magnitude.round()).to(torch.uint8).view(-1, 1, 1, 1)
    return images >> lost << lost


def solarize(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Invert pixels of at least `magnitude` times white."""
    return torch.where(images >= (255 * magnitude).float().view(-1, 1, 1, 1), 255 - images, images)


# torchvision's TrivialAugmentWide: function, first and last magnitude, and whether either sign is drawn.
SPACE: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], float, float, bool]] = {
    "identity": (lambda images, magnitude: images, 0.0, 0.0, False),
    "shear_x": (shear_x, 0.0, 0.99, True),
    "shear_y": (shear_y, 0.0, 0.99, True),
    "translate_x": (translate_x, 0.0, 32.0, True),
    "translate_y": (translate_y, 0.0, 32.0, True),
    "rotate": (rotate, 0.0, 135.0, True),
    "brightness": (lambda images, magnitude: adjust_brightness(images, 1 + magnitude), 0.0, 0.99, True),
    "color": (lambda images, magnitude: adjust_saturation(images, 1 + magnitude), 0.0, 0.99, True),
    "contrast": (lambda images, magnitude: adjust_contrast(images, 1 + magnitude), 0.0, 0.99, True),
    "sharpness": (sharpness, 0.0, 0.99, True),
    "posterize": (posterize, 8.0, 2.0, False),
    "solarize": (solarize, 1.0, 0.0, False),
    "autocontrast": (lambda images, magnitude: TV.autocontrast(images), 0.0, 0.0, False),
    "equalize": (lambda images, magnitude: TV.equalize(images), 0.0, 0.0, False),
}
_BINS = 31
# float64 (14, 62): the bins, then the bins with the other sign.
_MAGNITUDES = torch.stack(
    [
        torch.cat([bins, -bins if signed else bins])
        for _, first, last, signed in SPACE.values()
        for bins in [torch.linspace(first, last, _BINS).double()]
    ]
)


def draw(bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An operation for each image, int64 (B,) into `SPACE`, and its magnitude, float64 (B,); all on the CPU."""
    operation, place = bits[:, 0] * len(SPACE) >> 32, bits[:, 1] * 2 * _BINS >> 32
    return operation, _MAGNITUDES[operation, place]


def trivial_augment(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """One random operation of random strength (Müller & Hutter 2021, arXiv:2103.10158), in torchvision's "wide" space.

    Args:
        images: uint8 (B, 1 or 3, H, W), on any device.
        bits: int64 (B, at least 2) on the CPU, uniform over 0 … 2^32 - 1.
    """
    (operation, magnitude), device = draw(bits), images.device
    order, counts = operation.argsort(), operation.bincount(minlength=len(SPACE)).tolist()
    magnitude = magnitude[order].to(real(device)).to(device, non_blocking=True)
    groups = zip(order.to(device, non_blocking=True).split(counts), magnitude.split(counts), strict=True)
    done = images.clone()
    for (function, *_), (group, magnitudes) in zip(SPACE.values(), groups, strict=True):
        if len(group):
            done[group] = function(images[group], magnitudes)
    return done
