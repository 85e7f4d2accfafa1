"""Logits -> the predicted class, and the probability of each class."""

import torch


def probabilities(logits: torch.Tensor) -> list[float]:
    """The probability of each class, from the logits float (C,) of one image."""
    return logits.double().softmax(0).tolist()


def likeliest(logits: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` likeliest classes of each image, likeliest first, and their probabilities.

    Classes with equal logits keep their order.

    Args:
        logits: float (N, C).
        count: number of classes, at most C.
    """
    classes = logits.argsort(stable=True, descending=True)[:, :count]
    return classes.tolist(), logits.softmax(-1).gather(1, classes).tolist()


def decide(logits: torch.Tensor) -> torch.Tensor:
    """The predicted class of each image, int64 (N,), from logits float (N, C)."""
    return logits.argmax(1)


def agreement(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images with the same class in both, int64 (N,) each, as `decide` returns them."""
    return (predicted == labels).double().mean().item()
