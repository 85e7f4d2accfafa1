"""Losses of logits against class indices, or against the shares of classes that mixup and cutmix make."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ftkit.config import LossArguments

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(args: LossArguments, label_smoothing: float) -> Loss:
    """The loss of a run: (logits float (N, C), targets int64 (N,) or float (N, C)) -> the mean, float ().

    - `cross_entropy` of the softmax.
    - `mse`: squared error of the softmax's probabilities, averaged over classes (Brier 1950).
    - `bce`: a sigmoid for each class against the rest, averaged over classes (Beyer et al. 2020, arXiv:2006.07159).
    - `focal`: cross-entropy times (1 - p) ** gamma (Lin et al. 2017, arXiv:1708.02002).

    Args:
        label_smoothing: the share of each target that is spread over all classes, whatever the loss.
    """
    if args.loss == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)

    def focal(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        log_probabilities = F.log_softmax(logits, dim=1)
        easy = -torch.expm1(log_probabilities)  # 1 - p
        easy = easy.clamp(min=torch.finfo(easy.dtype).tiny)  # the slope of a root is infinite at 0
        return -(shares * easy**args.focal_gamma * log_probabilities).sum(1).mean()

    of_shares = {
        "mse": lambda logits, shares: F.mse_loss(logits.softmax(1), shares),
        "bce": F.binary_cross_entropy_with_logits,
        "focal": focal,
    }[args.loss]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shares = class_shares(targets, logits.shape[1])
        return of_shares(logits.float(), shares * (1 - label_smoothing) + label_smoothing / logits.shape[1])

    return loss


def class_shares(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Targets as shares of classes, float (N, C): one-hot where they are class indices."""
    return targets if targets.is_floating_point() else F.one_hot(targets, num_classes).float()
