"""Augmentation of a whole batch of uint8 images, by random numbers that depend on nothing but what they are for.

The numbers of an image are a function of (seed, epoch, the image's row, operation), so that a batch is the same
whatever worker, rank or resumed run computes it. They come from a counter-based generator: a hash of the counter.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

_CROP_PADDING = 4  # pixels, as in He et al. 2016 (arXiv:1512.03385) for CIFAR-10
_MASK = 0xFFFFFFFF


def random_bits(seed: int, epoch: int, rows: torch.Tensor, operation: str, count: int) -> torch.Tensor:
    """`count` random whole numbers for each row: int64 (B, count), uniform over 0 … 2^32 - 1.

    Args:
        seed: of the run.
        epoch: from 0.
        rows: int64 (B,), what identifies the images.
        operation: its name, so that two operations draw other numbers.
        count: how many an image needs.
    """
    key = int.from_bytes(operation.encode()[-8:].rjust(8, b"\0"), "big")
    key = (key ^ (key >> 32)) & _MASK
    state = _mix(rows.unsqueeze(1) & _MASK)
    for number in (seed & _MASK, epoch & _MASK, key):
        state = _mix(state ^ _mix(torch.full_like(state, number)))
    return _mix(state + torch.arange(1, count + 1, device=rows.device).unsqueeze(0) * 0x9E3779B9 & _MASK)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit numbers in which every bit of the input changes half of the output's.

    The constants are those of "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018).
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def flip(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Every second image, left to right. uint8 (B, C, H, W) -> the same."""
    return torch.where((bits[:, 0] & 1).bool().view(-1, 1, 1, 1), images.flip(3), images)


def random_crop(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Shifted by up to 4 pixels each way, black beyond the edge. uint8 (B, C, H, W) -> the same."""
    batch, channels, height, width = images.shape
    span = 2 * _CROP_PADDING + 1
    padded = F.pad(images, (_CROP_PADDING,) * 4)
    rows = bits[:, :1] * span // (_MASK + 1) + torch.arange(height, device=images.device)
    columns = bits[:, 1:2] * span // (_MASK + 1) + torch.arange(width, device=images.device)
    index = (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).view(batch, 1, -1)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)


_OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "random_crop": random_crop,
    "flip": flip,
}


def augment(images: torch.Tensor, rows: torch.Tensor, names: list[str], seed: int, epoch: int) -> torch.Tensor:
    """`images` after the named operations, in their order.

    Args:
        images: uint8 (B, C, H, W); not changed.
        rows: int64 (B,), the row of each image in its dataset.
        names: of `ftkit.arguments.data.AUGMENTATIONS`.
        seed: of the run.
        epoch: from 0.
    """
    for name in names:
        images = _OPERATIONS[name](images, random_bits(seed, epoch, rows, name, 2))
    return images
