"""Augmentation of a batch of uint8 images, with random numbers that do not depend on the batch.

An image's random numbers are a function of (seed, epoch, the image's row, operation), so every worker, rank or resumed
run computes the same image; each stage of a plan has its own seed. The numbers come from a counter-based generator: a
hash of the counter. Given its parameters, an operation does what torchvision's function of that name does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ftkit.data.augmentation.pixel_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    constant,
    real,
    shift,
    warp,
)
from ftkit.data.augmentation.trivial_augment import trivial_augment
from ftkit.errors import UserError

_MASK = 0xFFFFFFFF
_DRAWS = 8  # random numbers per image and operation, more than any operation needs
_FEW_DRAWS = {"flip": 1, "alternating_flip": 1, "random_crop": 2, "translate": 2, "cutout": 2, "trivial_augment": 2}


def random_bits(seed: int, epoch: int, rows: torch.Tensor, operation: str, count: int) -> torch.Tensor:
    """`count` random integers for each row: int64 (B, count), uniform over 0 … 2^32 - 1.

    Args:
        seed: the stage's seed.
        epoch: the epoch, from 0.
        rows: int64 (B,), which identify the images.
        operation: the operation's name; each operation draws its own numbers.
        count: numbers per image.
    """
    return _bits_of_all(seed, epoch, rows, [operation], count)[:, 0]


def _bits_of_all(seed: int, epoch: int, rows: torch.Tensor, operations: list[str], count: int) -> torch.Tensor:
    """`random_bits` of each operation, (B, operations, count), for little more than the cost of one."""
    state = _mix(rows & _MASK)
    for number in (seed, epoch):
        state = _mix(state ^ _mix(number & _MASK))
    state = _mix(torch.stack([state ^ _mix(_key(operation)) for operation in operations], dim=1))
    return _mix(state.unsqueeze(2) + torch.arange(1, count + 1, device=rows.device) * 0x9E3779B9 & _MASK)


def _key(operation: str) -> int:
    """32 bits from the full name: the exclusive or of its four-character pieces."""
    key, rest = 0, int.from_bytes(operation.encode(), "big")
    while rest:
        key, rest = key ^ rest & _MASK, rest >> 32
    return key


def _mix(x: Any) -> Any:
    """A bijection of 32-bit numbers; flipping a bit of the input flips half of the output's bits on average.

    The constants are those of "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018).
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def augment(images: torch.Tensor, rows: torch.Tensor, steps: list, seed: int, epoch: int) -> torch.Tensor:
    """`images` after the operations of `steps`, in order.

    Args:
        images: uint8 (B, C, H, W); not changed.
        rows: int64 (B,) on the CPU, the row of each image in its dataset.
        steps: names in `AUGMENTATIONS`, or mappings of one name to its options.
        seed: the stage's seed.
        epoch: the epoch, from 0.
    """
    if not steps:
        return images
    named = [next(iter(step.items())) if isinstance(step, dict) else (step, {}) for step in steps]
    most = max(_FEW_DRAWS.get(name, _DRAWS) for name, _ in named)
    there = rows.to(images.device, non_blocking=True)
    all_bits = _bits_of_all(seed, epoch, there, [name for name, _ in named], most)
    for (name, options), bits in zip(named, all_bits.unbind(1), strict=True):
        if name == "alternating_flip":  # draws the same numbers in every epoch
            images = alternating_flip(images, random_bits(seed, 0, there, name, 1), epoch)
        elif name == "trivial_augment":  # the host draws, because it has to know each operation's number of images
            images = trivial_augment(images, random_bits(seed, epoch, rows, name, 2))
        else:
            images = AUGMENTATIONS[name](images, bits, **options)
    return images


# The operations: uint8 (B, C, H, W) and random bits int64 (B, n) -> uint8 (B, C, H, W).


def flip(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Mirror each image left to right with probability 1/2."""
    chosen = (bits[:, 0] & 1).to(torch.uint8).view(-1, 1, 1, 1)
    return images.flip(3).sub_(images).mul_(chosen).add_(images)  # modulo 256: several times faster than torch.where


def alternating_flip(images: torch.Tensor, bits: torch.Tensor, epoch: int) -> torch.Tensor:
    """Mirror each image in every second epoch; a random half starts mirrored (Jordan 2024, arXiv:2404.00498).

    Args:
        bits: random bits, the same in every epoch.
    """
    return flip(images, bits + epoch)


def below(bits: torch.Tensor, count: Any) -> torch.Tensor:
    """int64, about uniform over 0 … count - 1."""
    return bits * count >> 32


def _uniform(bits: torch.Tensor) -> torch.Tensor:
    """float64 over [0, 1) in steps of 2^-32; float32 in steps of 2^-24 on devices without float64."""
    dtype = real(bits.device)
    return (bits if dtype == torch.float64 else bits & 0xFFFFFF00).to(dtype) / (_MASK + 1)


def random_crop(images: torch.Tensor, bits: torch.Tensor, padding: int = 4, mode: str = "zeros") -> torch.Tensor:
    """Pad the image on all sides, and crop it to its own size (He et al. 2016, arXiv:1512.03385).

    Args:
        padding: pixels on each side; less than the image's side for `mode: reflect`.
        mode: `zeros` (black) or `reflect`.
    """
    if mode == "reflect" and padding >= min(images.shape[2:]):
        raise UserError(f"augment: random_crop: padding {padding} must be less than the side of the image to reflect")
    return shift(images, below(bits[:, :2], 2 * padding + 1) - padding, (padding, padding), mode)


def translate(images: torch.Tensor, bits: torch.Tensor, share: float = 0.125) -> torch.Tensor:
    """Shift by up to `share` of the side each way, in whole pixels; black beyond the edge."""
    height, width = images.shape[2:]
    most = int(share * height), int(share * width)
    sides = constant(most, images.device)
    return shift(images, below(bits[:, :2], 2 * sides + 1) - sides, most)


def cutout(images: torch.Tensor, bits: torch.Tensor, size: int = 8) -> torch.Tensor:
    """Black out a square around a random pixel, cut off at the edge (DeVries & Taylor 2017, arXiv:1708.04552)."""
    sides = constant(images.shape[2:], images.device)
    corner = below(bits[:, :2], sides) - size // 2
    return _erase(images, corner, torch.full_like(corner, size))


def random_erasing(
    images: torch.Tensor,
    bits: torch.Tensor,
    probability: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> torch.Tensor:
    """Black out a rectangle with random area and aspect ratio (Zhong et al. 2020, arXiv:1708.04896)."""
    numbers = _uniform(bits)
    corner, sides = _random_boxes(images, numbers, scale, ratio)
    return _erase(images, corner, sides * (numbers[:, 4:5] < probability))


def _random_boxes(
    images: torch.Tensor, numbers: torch.Tensor, scale: Any, ratio: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners and sides, both int64 (B, 2), of boxes with uniform area, log-uniform aspect ratio and uniform place."""
    height, width = images.shape[2:]
    area = height * width * (scale[0] + numbers[:, 0] * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + numbers[:, 1] * (high - low)).exp()  # width / height
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=1).round().long()
    whole = constant([height, width], images.device)
    sides = torch.minimum(sides.clamp(min=1), whole)
    return (numbers[:, 2:4] * (whole - sides + 1)).long(), sides


def _erase(images: torch.Tensor, corner: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    (batch, _, height, width), device = images.shape, images.device
    outside = []
    for axis, side in enumerate((height, width)):
        at = torch.arange(side, device=device) - corner[:, axis : axis + 1]
        outside.append((at < 0) | (at >= sides[:, axis : axis + 1]))
    # A row of the mask is all ones or crosses the rectangle: copying rows is faster than combining two masks.
    rows = torch.cat([outside[1], outside[1].new_ones(1, width)]).to(torch.uint8)
    row = torch.arange(batch, device=device).unsqueeze(1).masked_fill(outside[0], batch)
    return images * rows.index_select(0, row.flatten()).view(batch, 1, height, width)


def random_resized_crop(
    images: torch.Tensor,
    bits: torch.Tensor,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> torch.Tensor:
    """Crop a rectangle and resize it to the image's own size (Szegedy et al. 2015, arXiv:1409.4842).

    Resizing is linear with antialiasing; a rectangle larger than the image in one direction is cut there.
    """
    corner, sides = _random_boxes(images, _uniform(bits), scale, ratio)
    down, right = (_resampling(side, corner[:, i], sides[:, i]) for i, side in enumerate(images.shape[2:]))
    resized = torch.einsum("bij,bcjk,blk->bcil", down, images.float(), right)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _resampling(side: int, begin: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Weights float (B, side, side) that resize `length` pixels, starting at `begin`, to `side` pixels."""
    at = torch.arange(side, device=begin.device).to(real(begin.device))
    scale = (length / side).view(-1, 1, 1)
    support = scale.clamp(min=1)
    center = (at + 0.5).view(1, -1, 1) * scale
    source = at.view(1, 1, -1) - begin.view(-1, 1, 1)
    weights = (1 - ((source + 0.5 - center) / support).abs()).clamp(min=0)
    weights = weights * ((source >= 0) & (source < length.view(-1, 1, 1)))
    return (weights / weights.sum(2, keepdim=True)).float()


def rotate(images: torch.Tensor, bits: torch.Tensor, degrees: float = 10.0) -> torch.Tensor:
    """Rotate by up to `degrees` each way around the centre; black beyond the edge, linear interpolation."""
    return affine(images, bits, degrees, translate=0.0, scale=(1.0, 1.0), shear=0.0)


def affine(
    images: torch.Tensor,
    bits: torch.Tensor,
    degrees: float = 10.0,
    translate: float = 0.1,
    scale: tuple[float, float] = (0.9, 1.1),
    shear: float = 5.0,
) -> torch.Tensor:
    """Rotate, scale, shear and shift around the centre; black beyond the edge, linear interpolation.

    Args:
        degrees: largest rotation each way.
        translate: largest shift each way, as a share of the side, in whole pixels.
        scale: smallest and largest factor.
        shear: largest angle each way, in degrees, along x and y.
    """
    numbers, (height, width) = _uniform(bits), images.shape[2:]
    angle = torch.deg2rad((2 * numbers[:, 0] - 1) * degrees)
    size = scale[0] + numbers[:, 1] * (scale[1] - scale[0])
    shear_x, shear_y = (torch.deg2rad((2 * numbers[:, n] - 1) * shear) for n in (2, 3))
    shift_x, shift_y = (((2 * numbers[:, n] - 1) * translate * side).round() for n, side in ((4, width), (5, height)))
    # The inverse of: shift ∘ rotation ∘ shear along y ∘ shear along x ∘ scale.
    turned = angle - shear_y
    a = turned.cos() / shear_y.cos()
    b = -turned.cos() * shear_x.tan() / shear_y.cos() - angle.sin()
    c = turned.sin() / shear_y.cos()
    d = -turned.sin() * shear_x.tan() / shear_y.cos() + angle.cos()
    inverse = torch.stack([d, -b, -c, a], 1) / size.unsqueeze(1)
    return warp(images, inverse, torch.stack([shift_x, shift_y], 1))


def brightness(images: torch.Tensor, bits: torch.Tensor, strength: float = 0.2) -> torch.Tensor:
    """Multiply by a factor from 1 - strength to 1 + strength."""
    return adjust_brightness(images, _factor(bits, strength))


def contrast(images: torch.Tensor, bits: torch.Tensor, strength: float = 0.2) -> torch.Tensor:
    """Blend with the image's mean grey value, by a factor from 1 - strength to 1 + strength."""
    return adjust_contrast(images, _factor(bits, strength))


def saturation(images: torch.Tensor, bits: torch.Tensor, strength: float = 0.2) -> torch.Tensor:
    """Blend with the grey image, by a factor from 1 - strength to 1 + strength; grey images do not change."""
    return adjust_saturation(images, _factor(bits, strength))


def _factor(bits: torch.Tensor, strength: float) -> torch.Tensor:
    return 1 + (2 * _uniform(bits[:, 0]) - 1) * strength


# The names for `augment`. The keywords of a function, with their defaults, are the options of the operation.
AUGMENTATIONS: dict[str, Callable[..., torch.Tensor]] = {
    operation.__name__: operation
    for operation in (
        flip,
        alternating_flip,
        random_crop,
        random_resized_crop,
        translate,
        rotate,
        affine,
        cutout,
        random_erasing,
        brightness,
        contrast,
        saturation,
        trivial_augment,
    )
}
