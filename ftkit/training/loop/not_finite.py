"""Losses and gradients that are not finite: found at no cost to a step, reported, and dealt with as `on_nan` says."""

import json
import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import nn

from ftkit.errors import UserError
from ftkit.training.checkpointing.checkpoints import newest_complete
from ftkit.training.checkpointing.saving import CheckpointingTrainer

logger = logging.getLogger(__name__)
_SHOWN = 8  # images
_ROLLBACKS = 3  # to the same checkpoint
_FILE = "not_finite.json"  # in a stage's folder


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
    """The losses since the last look at them, with their batches. Nothing waits for a device until then."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
        self._gradients: list[tuple[int, torch.Tensor]] = []

    def note(self, step: int, learning_rate: float, images: torch.Tensor, loss: torch.Tensor) -> None:
        """Remember a batch: its step, the indices int64 (B,) of its images, and its loss, a scalar."""
        self._seen.append((step, learning_rate, images, loss))

    def take(self, weights: Collection[torch.Tensor] = ()) -> NotFinite | None:
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


class Undo:
    """Undoes steps of an optimizer where the device finds that they should be, so that the host never waits for it.

    Each step is taken; before it, what it changes on the device is copied: weights, and all that the optimizer keeps
    for them. An optimizer that counts its steps on the host counts an undone one too, as the schedule does; a fused
    one, which counts on the device, does not.

    Attributes:
        possible: whether the optimizer has taken a step, and with it has all that it keeps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.possible = False
        self._finite: torch.Tensor | None = None
        self._before: Any = None
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._put_back)

    def unless(self, finite: torch.Tensor) -> None:
        """Undo the next step unless `finite`, bool () on the device, is true."""
        self._finite = finite

    @torch.no_grad()
    def _remember(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._finite is not None:
            self._before = _copy(_changing(optimizer))

    @torch.no_grad()
    def _put_back(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._finite is not None:
            _select(self._finite, _changing(optimizer), self._before)
        self._finite = self._before = None
        self.possible = self.possible or bool(_changing(optimizer))


def _changing(optimizer: torch.optim.Optimizer) -> list:
    """Each parameter that has a gradient, with what the optimizer keeps for it."""
    moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [(parameter, optimizer.state.get(parameter, {})) for parameter in moved]


def _copy(kept: Any) -> Any:
    if isinstance(kept, torch.Tensor):
        return kept.clone()
    if isinstance(kept, dict):
        return {name: _copy(value) for name, value in kept.items()}
    return [_copy(value) for value in kept] if isinstance(kept, list | tuple) else None


def _select(finite: torch.Tensor, kept: Any, before: Any) -> None:
    if isinstance(before, torch.Tensor):
        if kept.device == finite.device:
            kept.copy_(torch.where(finite, kept, before))
    elif before is not None:
        for name in before if isinstance(before, dict) else range(len(before)):
            _select(finite, kept[name], before[name])


class Guard:
    """Looks at the losses and gradients of a trainer, and does what `on_nan` says of those that are not finite.

    Attributes:
        losses: since the last look at them.
    """

    def __init__(self, trainer: CheckpointingTrainer, on_nan: str):
        self.trainer, self.on_nan = trainer, on_nan
        self.losses = Losses()
        self._undo: Undo | None = None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip updates of this optimizer on its device, if they are to be skipped and the host would have to wait."""
        if self.on_nan == "skip" and self.trainer.args.device.type != "cpu":
            self._undo = Undo(optimizer)

    def look_at_gradient(self, model: nn.Module, norm: torch.Tensor | None) -> torch.Tensor | None:
        """Skip the update of a gradient that is not finite, if `on_nan` says so.

        Args:
            model: after the backward pass of a step.
            norm: of the gradient, where it is known.

        Returns:
            The norm, where it is known now.
        """
        if self.on_nan != "skip" or self.trainer.accelerator.scaler:  # a scaler skips such updates itself
            return norm
        if norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if self._undo is not None and self._undo.possible:
            self._undo.unless(norm.isfinite())
            self.losses.note_gradient(norm)
        elif not math.isfinite(norm):
            model.zero_grad(set_to_none=True)  # an optimizer skips what has no gradient
            self._report(self.losses.of(self.trainer.state.global_step + 1))
        return norm

    def look_at_losses(self) -> None:
        """Do what `on_nan` says about a loss that is not finite; before anything is evaluated, saved or logged.

        Raises:
            UserError: there is such a loss, and the run is to stop, or cannot go back any more.
        """
        trainer = self.trainer
        for update in self.losses.without_finite_gradient():
            self._report(update)
        found = self.losses.take([] if trainer.sharded else _trained_weights(trainer.model))
        if found is None or (self.on_nan == "skip" and self._weights_are_finite()):
            return
        checkpoint, again = newest_complete(Path(trainer.args.output_dir)), trainer.progress.rolled_back
        if self.on_nan == "rollback" and checkpoint is not None and again < _ROLLBACKS:
            logger.warning("  %s: back to the weights of %s", found, checkpoint)
            trainer.progress.rolled_back += 1
            trainer.roll_back(checkpoint)
            return
        file = Path(trainer.args.output_dir) / _FILE
        if trainer.args.should_save:
            found.write(file)
        saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        often = f" after {again} returns to the same weights" if again else ""
        raise UserError(
            f"{found}{often}; {saved}, and all images of the batch are in {file}. Lower learning_rate, clip with "
            "max_grad_norm: 1.0, or set on_nan: skip or rollback"
        )

    def _report(self, update: NotFinite) -> None:
        self.trainer.progress.left_out += 1
        logger.warning("  the gradient is not finite, and this update is left out: %s", update)

    def _weights_are_finite(self) -> bool:
        # A forward pass moves buffers even if it overflows.
        model = self.trainer.model
        kept = (*_trained_weights(model), *model.buffers())
        return self.trainer.sharded or all(bool(tensor.isfinite().all()) for tensor in kept)


def _trained_weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
