"""Losses that are not finite: found at no cost to a step, and told with what led to them."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import nn

_SHOWN = 8  # images


class NotFinite(NamedTuple):
    """A step whose loss, or whose weights, are not finite.

    Attributes:
        step: the optimizer step that it belongs to, from 1.
        learning_rate: of that step.
        loss: NaN or infinite.
        images: of the batch, by their `index` in the data.
    """

    step: int
    learning_rate: float
    loss: float
    images: list[int]

    def __str__(self) -> str:
        images = ", ".join(map(str, self.images[:_SHOWN])) + (", …" if len(self.images) > _SHOWN else "")
        return f"the loss is {self.loss} at step {self.step} (learning rate {self.learning_rate:.3g}, images {images})"

    def write(self, path: Path) -> None:
        """Write all of it, as JSON."""
        path.write_text(json.dumps({**self._asdict(), "loss": str(self.loss)}) + "\n")


class Losses:
    """The losses since the last look at them, with their batches. Nobody waits for a device until then."""

    def __init__(self):
        self._seen: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
        self._gradients: list[tuple[int, torch.Tensor]] = []

    def note(self, step: int, learning_rate: float, images: torch.Tensor, loss: torch.Tensor) -> None:
        """Remember a batch: its step, the indices int64 (B,) of its images, and its loss, a scalar."""
        self._seen.append((step, learning_rate, images, loss))

    def take(self, weights: list[torch.Tensor] = ()) -> NotFinite | None:
        """The first loss that is not finite, of all processes; what was seen is forgotten.

        Args:
            weights: are asked as well. Where they are not finite, it is the last step that made them so.
        """
        seen, self._seen, found = self._seen, [], None
        losses = torch.stack([loss for *_, loss in seen]).tolist() if seen else []
        bad = next((n for n, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is None and seen and not all(bool(tensor.isfinite().all()) for tensor in weights):
            bad, losses[-1] = len(seen) - 1, math.nan
        if bad is not None:
            step, learning_rate, images, _ = seen[bad]
            found = NotFinite(step, learning_rate, losses[bad], images.tolist())
        return min((one for one in gather_object([found]) if one is not None), default=None, key=lambda one: one.step)

    def note_gradient(self, norm: torch.Tensor) -> None:
        """Remember the norm of the gradient, a scalar, of the step that the last batch belongs to."""
        self._gradients.append((self._seen[-1][0], norm))

    def without_finite_gradient(self) -> list[NotFinite]:
        """The steps whose gradients were not finite; what was noted of gradients is forgotten."""
        noted, self._gradients = self._gradients, []
        norms = torch.stack([norm for _, norm in noted]).tolist() if noted else []
        return [self.of(step) for (step, _), norm in zip(noted, norms, strict=True) if not math.isfinite(norm)]

    def of(self, step: int) -> NotFinite:
        """The last batch of a step, for what is wrong with its gradient."""
        _, learning_rate, images, loss = next(batch for batch in reversed(self._seen) if batch[0] == step)
        return NotFinite(step, learning_rate, float(loss), images.tolist())


def trained_weights(model: nn.Module) -> list[torch.Tensor]:
    """What training moves."""
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
