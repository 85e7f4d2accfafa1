"""Exported models compared with PyTorch: logits, score, speed."""

import math
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftkit.errors import UserError
from ftkit.export.formats import LogitsOnly, Predict, first_lines
from ftkit.tasks import Task

_CHECKED = (1, 7, 32)  # batch sizes
_TIMED = (1, 32)


class Reference:
    """The PyTorch model, and its answers on labelled images, as the reference for exported models.

    Args:
        model: the model in evaluation mode, on the CPU.
        sample: float32 (N, C, H, W), images to compare logits on and to time.
        batches: function that makes the batches to score on, float32 (B, C, H, W).
        labels: (N, …), the targets of the images in `batches`.
        task: the model's task.
    """

    def __init__(
        self,
        model: LogitsOnly,
        sample: torch.Tensor,
        batches: Callable[[], Iterable[torch.Tensor]],
        labels: torch.Tensor,
        task: Task,
    ):
        self.model, self.sample, self.batches, self.labels, self.task = model, sample, batches, labels, task

    @cached_property
    def predicted(self) -> torch.Tensor:
        """The model's decision for every image of `batches`, see `Task.decide`."""
        return self._predict(self.model)

    @torch.inference_mode()
    def check(self, name: str, predict: Predict, tolerance: float) -> float:
        """Compare the logits of `predict` with the model's on batches of 1, 7 and 32 images.

        Args:
            name: the name of the format.
            tolerance: the largest difference allowed, as a share of the largest logit, or of 1 if that is larger.

        Returns:
            The largest difference.

        Raises:
            UserError: the difference is larger, or a batch fails.
        """
        differences = []
        for size in _CHECKED:
            batch = take(self.sample, size)
            expected = self.model(batch)
            try:
                found = predict(batch)
            except Exception as error:  # each runtime has its own errors
                raise UserError(f"{name}: the export fails on a batch of {size}: {first_lines(error)}") from error
            if found.shape != expected.shape:
                shapes = f"{tuple(found.shape)}, not {tuple(expected.shape)}"
                raise UserError(f"{name}: the export gives logits of shape {shapes}: nothing was kept")
            allowed = tolerance * max(1.0, expected.abs().max().item())
            differences.append((found - expected).abs().max().item())
            if not (math.isfinite(differences[-1]) and differences[-1] <= allowed):
                raise UserError(
                    f"{name}: the export gives other logits than PyTorch, by {differences[-1]:.2g} on a batch "
                    f"of {size} ({allowed:.2g} is allowed): nothing was kept"
                )
        return max(differences)

    @torch.inference_mode()
    def measure(self, predict: Predict, repeats: int) -> dict[str, Any]:
        """The score, the share of predictions that equal the model's, and `milliseconds` by batch size.

        The times are median and 95th percentile over `repeats`, after a warm-up.
        """
        predicted = self.predicted if predict is self.model else self._predict(predict)
        return {
            self.task.score: self.task.agreement(predicted, self.labels),
            "same_predictions": self.task.agreement(predicted, self.predicted),
            "milliseconds": {str(size): _time(predict, take(self.sample, size), repeats) for size in _TIMED},
        }

    @torch.inference_mode()
    def _predict(self, predict: Predict) -> torch.Tensor:
        return torch.cat([self.task.decide(predict(batch)) for batch in self.batches()])


def take(images: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` images (N, C, H, W), repeated if there are fewer."""
    return images[torch.arange(count) % len(images)]


def megabytes(path: Path) -> float:
    """The size of a file and its companion files in MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6


def _time(predict: Predict, batch: torch.Tensor, repeats: int) -> dict[str, float]:
    predict(batch)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        predict(batch)
        taken.append(1000 * (time.perf_counter() - start))
    return {"median": float(np.median(taken)), "p95": float(np.percentile(taken, 95))}
