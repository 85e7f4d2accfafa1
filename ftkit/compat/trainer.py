"""The private methods of transformers' `Trainer` that ftkit extends, as public hooks."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINING_ARGS_NAME


class HookedTrainer(Trainer):
    """`Trainer` with a public hook for each private method that ftkit extends.

    By default a hook does what the `Trainer` does. What public methods, callbacks or arguments can change belongs in
    subclasses.
    """

    model: nn.Module
    optimizer: Any  # while training, accelerate's wrapper of torch's
    lr_scheduler: LambdaLR

    def waits_for_epoch_end(self) -> bool:
        """Whether logging, evaluating and saving that is due after this step waits for the end of the epoch."""
        return False

    def after_step(self) -> None:
        """Called after a step or an epoch, once everything due is logged, evaluated and saved; no callback is."""

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<step>`. Callbacks run too late to write it to a temporary folder first."""
        super()._save_checkpoint(self.model, None)

    def save_weights(self, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write the weights of a checkpoint, gathered in `state_dict` if they are sharded; called in all processes.

        The `Trainer`'s pickle of its arguments is deleted: config.yaml holds them.
        """
        super()._save(str(folder), state_dict)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def load_model(self, checkpoint: Path, model: nn.Module | None) -> None:
        """Load the weights of a checkpoint to resume from; the `Trainer` lets a missing tensor pass with a warning.

        Args:
            checkpoint: the folder of the checkpoint.
            model: the model that FSDP has sharded; None for one that is not sharded.
        """
        super()._load_from_checkpoint(str(checkpoint), model)

    def load_best_model(self) -> None:
        """Load the weights that validation chose, after training. The `Trainer` expects PEFT's files for adapters."""
        super()._load_best_model()

    def load_optimizer(self, checkpoint: Path) -> None:
        """Load optimizer and schedule. Under FSDP torch refuses an optimizer without state, such as plain SGD."""
        if not self.is_fsdp_enabled or _has_state(checkpoint / OPTIMIZER_NAME_BIN):
            super()._load_optimizer_and_scheduler(str(checkpoint))
            return
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True))
        self.take_rates_of_schedule()

    def take_rates_of_schedule(self) -> None:
        """Set the optimizer's learning rates to the schedule's."""
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def gradient_norm(self, model: nn.Module, clipped: torch.Tensor | None) -> torch.Tensor | float | None:
        """The norm of the gradient for the log: `clipped` if clipping has computed it. Callbacks do not get it."""
        return super()._get_grad_norm(model, clipped)

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the device; under DeepSpeed floats get the type of the weights, which may have 16 bits."""
        return self._prepare_input(values)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if not self.waits_for_epoch_end():
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.after_step()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint()

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        self.save_weights(Path(output_dir), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.load_model(Path(resume_from_checkpoint), model)

    def _load_best_model(self) -> None:
        self.load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_optimizer(Path(checkpoint))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.gradient_norm(model, grad_norm)


def _has_state(optimizer: Path) -> bool:
    return bool(torch.load(optimizer, map_location="cpu", weights_only=True, mmap=True)["state"])
