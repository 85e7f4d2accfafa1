"""Operations on a batch of uint8 images, with parameters for each image.

These functions take uint8 (B, 1 or 3, H, W) and parameters of B images, and return uint8 of the same shape. The result
is torchvision's for each image, except that interpolation is bilinear, not nearest. Parameters are `real`, mostly
float64. No function synchronises with the device.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

_WITHOUT_FLOAT64 = ("mps",)  # Apple's GPUs


def real(device: torch.device) -> torch.dtype:
    """The dtype of parameters: float64, or float32 on devices without it."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def constant(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 (n,). `torch.tensor(numbers, device=device)` would make the host wait for the device's queued work."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def shift(images: torch.Tensor, shifts: torch.Tensor, most: tuple[int, int], mode: str = "zeros") -> torch.Tensor:
    """Crop each image, padded, to its own size with the top-left corner at `shifts`.

    Args:
        shifts: int64 (B, 2), rows down and columns right that the window moves: the content moves up and left.
        most: largest absolute shift of rows and of columns; less than the side for `mode: reflect`.
        mode: padding beyond the edge: `zeros` (black) or `reflect`.
    """
    (batch, channels, height, width), device = images.shape, images.device
    padded = F.pad(images, (most[1], most[1], most[0], most[0]))
    if mode == "reflect":  # F.pad cannot reflect uint8 on the CPU
        for axis in (2, 3):
            lines, edge = padded.unbind(axis), most[axis - 2]
            for n in range(1, edge + 1):
                lines[edge - n].copy_(lines[edge + n])
                lines[-1 - edge + n].copy_(lines[-1 - edge - n])
    tall, wide = padded.shape[2:]
    top, left = (shifts[:, axis : axis + 1] + most[axis] for axis in (0, 1))
    begin = torch.arange(0, batch * channels * tall * wide, tall * wide, device=device).view(batch, channels, 1)
    begin = begin + ((top + torch.arange(height, device=device)) * wide + left).unsqueeze(1)  # (B, C, H)
    rows = padded.flatten().unfold(0, width, 1)  # copying rows is several times faster than gathering pixels
    return rows.index_select(0, begin.flatten()).view(images.shape)


def warp(images: torch.Tensor, inverse: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Apply a linear map around the centre, then a shift.

    Args:
        inverse: float64 (B, 4), the rows of the matrix that maps a point (x, y) of the result to its source.
        shift: float64 (B, 2), pixels right and down that the content moves.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + 0.5 - width / 2 - shift[:, :1]
    y = torch.arange(height, device=images.device) + 0.5 - height / 2 - shift[:, 1:]
    a, b, c, d = inverse.view(-1, 4, 1, 1).unbind(1)
    x, y = x.unsqueeze(1), y.unsqueeze(2)
    grid = torch.stack([(a * x + b * y) / (width / 2), (c * x + d * y) / (height / 2)], dim=-1).float()
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round().clamp(0, 255).to(torch.uint8)


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply by `factor`, float64 (B,)."""
    return blend(images, 0.0, factor)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the image's mean grey value: `factor`, float64 (B,), below 1 lowers the contrast."""
    return blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image: `factor`, float64 (B,), below 1 lowers the saturation; grey images do not change."""
    return images if images.shape[1] == 1 else blend(images, _grey(images), factor)


def _grey(images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()  # as torchvision does


def blend(images: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    """`factor` times the image plus 1 - `factor` times `other`; `factor` is float64 (B,)."""
    factor = factor.float().view(-1, 1, 1, 1)
    return (images.float() * factor + other * (1 - factor)).clamp(0, 255).to(torch.uint8)
