"""What logits say about an image: the class, and how probable each class is."""

import torch


def probabilities(logits: torch.Tensor) -> list[float]:
    """The probability of each class, by its logits float (C,)."""
    return logits.double().softmax(0).tolist()


def likeliest(logits: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` likeliest classes of each image, of equals the first, and their probabilities.

    Args:
        logits: float (N, C).
        count: no more than C.
    """
    classes = logits.argsort(stable=True, descending=True)[:, :count]
    return classes.tolist(), logits.softmax(-1).gather(1, classes).tolist()


def decide(logits: torch.Tensor) -> torch.Tensor:
    """The class of each image, int64 (N,), by its logits float (N, C)."""
    return logits.argmax(1)


def agreement(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images whose class, int64 (N,), from `decide` is that of the other side."""
    return (predicted == labels).double().mean().item()
