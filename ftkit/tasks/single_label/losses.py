"""Losses of logits against class indices, or against the shares of classes that mixup and cutmix produce.

Each takes logits float32 (N, C), targets int64 (N,) or float (N, C), the share of each target that label smoothing
spreads over all classes, and the loss arguments of the run, and returns the mean over images, float (). To add one,
write a function and add it to `LOSSES`.
"""

import torch
from torch.nn import functional as F

from ftkit.config import LossArguments


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float, args: LossArguments) -> torch.Tensor:
    """Cross-entropy of the softmax."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def mse(logits: torch.Tensor, targets: torch.Tensor, smoothing: float, args: LossArguments) -> torch.Tensor:
    """Squared error of the softmax probabilities, averaged over classes (Brier 1950)."""
    return F.mse_loss(logits.softmax(1), smoothed_shares(targets, logits.shape[1], smoothing))


def bce(logits: torch.Tensor, targets: torch.Tensor, smoothing: float, args: LossArguments) -> torch.Tensor:
    """Binary cross-entropy of each class against the rest, averaged (Beyer et al. 2020, arXiv:2006.07159)."""
    return F.binary_cross_entropy_with_logits(logits, smoothed_shares(targets, logits.shape[1], smoothing))


def focal(logits: torch.Tensor, targets: torch.Tensor, smoothing: float, args: LossArguments) -> torch.Tensor:
    """Cross-entropy times (1 - p) ** focal_gamma, to down-weight easy images (Lin et al. 2017, arXiv:1708.02002)."""
    log_probabilities = F.log_softmax(logits, dim=1)
    easy = -torch.expm1(log_probabilities)  # 1 - p
    easy = easy.clamp(min=torch.finfo(easy.dtype).tiny)  # with focal_gamma < 1 the slope is infinite at 0
    shares = smoothed_shares(targets, logits.shape[1], smoothing)
    return -(shares * easy**args.focal_gamma * log_probabilities).sum(1).mean()


LOSSES = {loss.__name__: loss for loss in (cross_entropy, mse, bce, focal)}
OPTIONS = {"focal_gamma": "focal"}  # argument of `LossArguments` -> the only loss that reads it


def class_shares(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Targets as shares of classes, float (N, C): one-hot if they are class indices."""
    return targets if targets.is_floating_point() else F.one_hot(targets, num_classes).float()


def smoothed_shares(targets: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Targets as shares of classes, with the share `smoothing` of each target spread over all classes."""
    return class_shares(targets, num_classes) * (1 - smoothing) + smoothing / num_classes
