"""Mixup and cutmix of a batch, with random numbers that do not depend on the batch.

Each image is mixed with the next one in the epoch's order, the last with the first. The order depends on seed and
epoch; the share and the box also depend on the image's row. So every batch size, process or resumed run computes the
same image. The loader adds one image to each batch, which the last one is mixed with.
"""

import numpy as np
import torch
from scipy.special import betaincinv

from ftkit.data.augmentation.augment import below, random_bits
from ftkit.data.augmentation.pixel_ops import real

_POWER = 12  # the tables of the Beta distributions have 2^12 pieces of equal probability
_BITS = 32 - _POWER


class Mixing:
    """Mixes each image and its label with the next one: floats (B + 1, …) -> (B, …). Never waits for the device.

    Mixup (Zhang et al. 2018, arXiv:1710.09412) averages two images, cutmix (Yun et al. 2019, arXiv:1905.04899) pastes
    a box of one into the other; with both on, each image draws one of the two.

    Args:
        mixup: alpha; the share of an image that stays is distributed as Beta(alpha, alpha); 0 is off.
        cutmix: alpha for the share of the area that stays, before the box is cut off at the edge; 0 is off.
    """

    def __init__(self, mixup: float, cutmix: float):
        self.mixup, self.cutmix = mixup, cutmix
        steps = np.linspace(0, 1, 2**_POWER + 1)
        self.quantiles = torch.from_numpy(
            np.stack([betaincinv(alpha, alpha, steps) for alpha in (mixup or 1, cutmix or 1)])
        )

    def __call__(
        self, images: torch.Tensor, shares: torch.Tensor, rows: torch.Tensor, seed: int, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first B images and labels, mixed.

        Args:
            images: float (B + 1, C, H, W).
            shares: float (B + 1, classes), the share of each class in the label; a box counts by its visible area.
            rows: int64 (B + 1,) on the CPU, the row of each image in its dataset.
            seed: the stage's seed.
            epoch: the epoch, from 0.
        """
        bits = random_bits(seed, epoch, rows[:-1].to(images.device, non_blocking=True), "mixing", 4)
        cut = bits[:, 0] & 1 if self.mixup and self.cutmix else torch.full_like(bits[:, 0], bool(self.cutmix))
        stays = share = self._draw(cut, bits[:, 1]).view(-1, 1, 1, 1)
        if self.cutmix:
            outside = _outside_of_boxes(images, share.view(-1, 1), bits[:, 2:])
            stays = torch.where(cut.view_as(share) == 1, outside, stays)
            share = torch.where(cut.view_as(share) == 1, outside.mean((2, 3), keepdim=True), share)
        mixed = torch.lerp(images[1:], images[:-1], stays.to(images.dtype))
        return mixed, torch.lerp(shares[1:], shares[:-1], share.view(-1, 1).to(shares.dtype))

    def _draw(self, cut: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """float64 (B,), Beta-distributed: the inverse distribution function, linear within each piece."""
        if self.quantiles.device != bits.device:
            self.quantiles = self.quantiles.to(bits.device, real(bits.device))
        piece, within = bits >> _BITS, (bits & (2**_BITS - 1)) / 2**_BITS
        return torch.lerp(self.quantiles[cut, piece], self.quantiles[cut, piece + 1], within.to(self.quantiles.dtype))


def _outside_of_boxes(images: torch.Tensor, stays: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """float64 (B, 1, H, W): 0 inside a box around a random pixel, with sides √(1 - `stays`) of the image's; else 1."""
    inside = []
    for axis, side in enumerate(images.shape[2:]):
        length = ((1 - stays).sqrt() * side).long()
        begin = below(bits[:, axis : axis + 1], side) - length // 2
        at = torch.arange(side, device=images.device)
        inside.append((at >= begin) & (at < begin + length))
    return (~(inside[0].unsqueeze(2) & inside[1].unsqueeze(1))).to(stays.dtype).unsqueeze(1)
