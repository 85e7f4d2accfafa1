"""Losses and gradients that are not finite: found without slowing a step, reported, and handled as `on_nan` says."""

import json
import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import nn

from ftkit.errors import UserError, listed
from ftkit.training.checkpointing.checkpoints import newest_complete
from ftkit.training.checkpointing.saving import CheckpointingTrainer

logger = logging.getLogger(__name__)
_SHOWN = 8  # images in a message
_ROLLBACKS = 3  # to the same checkpoint
_FILE = "not_finite.json"  # in a stage's folder


class NotFinite(NamedTuple):
    """A batch whose loss, gradient or updated weights are not finite.

    Attributes:
        step: the optimizer step of the batch, from 1.
        learning_rate: the learning rate of that step.
        loss: the loss: NaN or infinite, unless only the gradient is.
        images: the images of the batch, by their `index` in the data.
    """

    step: int
    learning_rate: float
    loss: float
    images: list[int]

    def __str__(self) -> str:
        images = listed(map(str, self.images), _SHOWN)
        return f"the loss is {self.loss} at step {self.step} (learning rate {self.learning_rate:.3g}, images {images})"


class Losses:
    """The losses since the last check, with their batches. Only a check waits for a device."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
        self._gradients: list[tuple[int, torch.Tensor]] = []

    def note(self, step: int, learning_rate: float, images: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch: its step, the indices int64 (B,) of its images, and its loss, a scalar."""
        self._seen.append((step, learning_rate, images, loss))

    def take(self, weights: Collection[torch.Tensor] = ()) -> NotFinite | None:
        """The first loss that is not finite in any process. All noted losses are forgotten.

        Args:
            weights: tensors to check too; if one is not finite, the last step is blamed.
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
        """Add the norm of the gradient, a scalar, of the last batch's step."""
        self._gradients.append((self._seen[-1][0], norm))

    def without_finite_gradient(self) -> list[NotFinite]:
        """The steps whose gradients were not finite. All noted norms are forgotten."""
        noted, self._gradients = self._gradients, []
        norms = torch.stack([norm for _, norm in noted]).tolist() if noted else []
        return [self.of(step) for (step, _), norm in zip(noted, norms, strict=True) if not math.isfinite(norm)]

    def of(self, step: int) -> NotFinite:
        """The last batch of a step, to report its gradient."""
        _, learning_rate, images, loss = next(batch for batch in reversed(self._seen) if batch[0] == step)
        return NotFinite(step, learning_rate, float(loss), images.tolist())


class Undo:
    """Undoes optimizer steps on the device, if their gradient is not finite; the host never waits for the device.

    Before each step the weights and the optimizer's state on the device are copied; after it the device selects the
    old or the new values. A fused optimizer, which counts its steps on the device, does not count an undone one; one
    that counts on the host does, as the schedule does.

    Attributes:
        possible: whether the optimizer has taken a step, and so has its full state.
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
    """Each parameter with a gradient, and the optimizer's state for it."""
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
    """Checks the losses and gradients of a trainer, and handles those that are not finite as `on_nan` says.

    Attributes:
        losses: the losses since the last check.
    """

    def __init__(self, trainer: CheckpointingTrainer, on_nan: str):
        self.trainer, self.on_nan = trainer, on_nan
        self.losses = Losses()
        self._undo: Undo | None = None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo this optimizer's updates on its device, if `on_nan` is `skip` and the device is not the CPU."""
        if self.on_nan == "skip" and self.trainer.args.device.type != "cpu":
            self._undo = Undo(optimizer)

    def check_gradient(self, model: nn.Module, norm: torch.Tensor | None) -> torch.Tensor | None:
        """Skip the update of a gradient that is not finite, if `on_nan` is `skip`.

        Args:
            model: the model after the backward pass of a step.
            norm: the norm of the gradient, or None if clipping has not computed it.

        Returns:
            The norm, or None if it is still unknown.
        """
        if self.on_nan != "skip" or self.trainer.accelerator.scaler:  # a scaler skips such updates itself
            return norm
        if norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if self._undo is not None and self._undo.possible:
            self._undo.unless(norm.isfinite())
            self.losses.note_gradient(norm)
        elif not math.isfinite(norm):
            model.zero_grad(set_to_none=True)  # an optimizer skips parameters without a gradient
            self._report(self.losses.of(self.trainer.state.global_step + 1))
        return norm

    def check_losses(self) -> None:
        """Handle a loss that is not finite as `on_nan` says, before anything is evaluated, saved or logged.

        Raises:
            UserError: a loss is not finite, and `on_nan` is `stop`, or no checkpoint is left to return to.
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
            file.write_text(json.dumps({**found._asdict(), "loss": str(found.loss)}) + "\n")
        saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        often = f" after {again} returns to the same weights" if again else ""
        raise UserError(
            f"{found}{often}; {saved}, and {file} lists all images of the batch. Lower learning_rate or leave it out, "
            "clip with max_grad_norm: 1.0, or set on_nan: skip or rollback; --overwrite true starts again",
            fix={"learning_rate": None, "max_grad_norm": 1.0, "overwrite": True},
        )

    def _report(self, update: NotFinite) -> None:
        self.trainer.progress.left_out += 1
        logger.warning("  the gradient is not finite, this update is skipped: %s", update)

    def _weights_are_finite(self) -> bool:
        # A forward pass updates buffers even if it overflows.
        model = self.trainer.model
        kept = (*_trained_weights(model), *model.buffers())
        return self.trainer.sharded or all(bool(tensor.isfinite().all()) for tensor in kept)


def _trained_weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
