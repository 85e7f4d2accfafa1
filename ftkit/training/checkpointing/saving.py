"""A `Trainer` whose checkpoints are complete or invisible, and from which it resumes exactly."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from ftkit.compat.trainer import HookedTrainer
from ftkit.config.arguments.training import TrainingArguments
from ftkit.errors import Interrupted, UserError, listed
from ftkit.files import hidden
from ftkit.methods.adapter_kinds import hooks_of
from ftkit.methods.adapters import adapter_state
from ftkit.models.anatomy import whole_state
from ftkit.signals import signals
from ftkit.training.checkpointing.checkpoints import PREFIX, STATE, best_of, rotate, seal
from ftkit.training.checkpointing.continuity import Fingerprint
from ftkit.training.loop.ema import WeightAverage
from ftkit.training.loop.progress import Progress

logger = logging.getLogger(__name__)
_FAILURES = (OSError, RuntimeError, SafetensorError)  # raised when writing a file fails


class CheckpointingTrainer(HookedTrainer):
    """`Trainer` with checkpoints that hold everything a run needs to resume, including adapters and averages.

    Attributes:
        original: the model that was passed in; under FSDP or DeepSpeed `model` is a sharded copy of it.
        progress: losses and times that the `Trainer`'s own checkpoints leave out.
        fingerprint: the run's fingerprint, saved in every checkpoint; None for a trainer that only predicts.
        average: the average of the weights, if the stage keeps one.
        saved_best: the best value so far whose weights were saved, its step and its checkpoint.
        lost_best: a checkpoint better than `saved_best`, if neither it nor a later one could be written.
    """

    args: TrainingArguments

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.original = self.model
        self.progress = Progress(self.args.process_index)
        self.average: WeightAverage | None = None
        self.fingerprint: Fingerprint | None = None
        self.add_callback(self.progress)
        self.saved_best: tuple[float | None, int | None, str | None] = (None, None, None)
        self.lost_best: Path | None = None

    @property
    def sharded(self) -> bool:
        """Whether FSDP or DeepSpeed train a sharded copy of the model."""
        return self.model is not self.original

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:  # type: ignore[override]  # ftkit uses no more
        """Train, from a checkpoint if one is given.

        Raises:
            UserError: the checkpoint that validation chose could not be written, nor any later one, so the stage would
                finish with other weights.
        """
        if resume_from_checkpoint is not None:
            self.add_callback(_Resume(self, Path(resume_from_checkpoint)))
        output = super().train(resume_from_checkpoint)
        if self.lost_best is not None and self.args.load_best_model_at_end:
            raise UserError(
                f"output_dir: {self.lost_best}, which validation chose, could not be written: make room there, or "
                "make it writable, and run the same command again: it resumes from what is saved"
            )
        return output

    def finished_before(self, checkpoint: Path, patience: int | None) -> TrainOutput | None:
        """The result of a stage whose last step this checkpoint holds; None if steps are left.

        Args:
            checkpoint: the checkpoint to resume from.
            patience: number of evaluations without improvement after which the stage ends early.
        """
        state, left = TrainerState.load_from_json(str(checkpoint / STATE)), math.inf
        if patience is not None:
            stopping = state.stateful_callbacks["EarlyStoppingCallback"]["attributes"]
            left = patience - stopping["early_stopping_patience_counter"]
        if state.global_step < state.max_steps and left > 0:
            return None
        self.state = state
        self.remember_best(checkpoint)
        self.progress.load(checkpoint)
        state.log_history.append({"train_loss": self.progress.losses.of_stage(), "total_flos": state.total_flos,
                                  "epoch": state.epoch, "step": state.global_step})  # fmt: skip
        if not self.sharded:
            best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
            self.load_weights(Path(best) if best else checkpoint)
        return TrainOutput(state.global_step, 0.0, {})

    def waits_for_epoch_end(self) -> bool:
        """Whether this is the last step of an epoch that has not ended: a run resumed from its checkpoint would start
        the next epoch, and never evaluate this one."""
        return self.progress.within_epoch and (
            self.state.epoch % 1 == 0 or self.state.global_step >= self.state.max_steps
        )

    def after_step(self) -> None:
        """Save, and end, if a signal asked for it."""
        save, stop = signals.agreed()
        if save and not self._checkpoint().is_dir():
            self.save_checkpoint()
        if stop:
            raise Interrupted(stop)

    def _checkpoint(self) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"

    def save_checkpoint(self) -> None:
        """Write a checkpoint aside, seal and rename it. If the disk is full, training continues without it."""
        checkpoint = self._checkpoint()
        aside = hidden(checkpoint.with_name("saving"))
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        failure = self._write(aside / checkpoint.name)
        if self.state.best_model_checkpoint is not None:
            self.state.best_model_checkpoint = str(checkpoint.with_name(Path(self.state.best_model_checkpoint).name))
        if failure is None:
            failure = self._seal(aside / checkpoint.name, checkpoint)
        if failure is not None:
            # A best value without saved weights does not count.
            if self.state.best_global_step == self.state.global_step:
                self.lost_best = checkpoint
            self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint = self.saved_best
            level = logging.WARNING if self.args.should_save else logging.DEBUG  # once for all processes
            logger.log(level, "%s could not be written, training continues without it: %s", checkpoint, failure)
        elif self.state.best_model_checkpoint is not None:
            self.lost_best = None
            self.saved_best = (self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> str | None:
        """Write this process's part; returns why one of the processes could not, the same in all of them."""
        self.failure: Exception | None = None
        output_dir = self.args.output_dir
        self.args.output_dir = str(folder.parent)
        try:
            super().save_checkpoint()
            self.progress.save(folder)
            if self.args.should_save and self.fingerprint is not None:
                self.fingerprint.save(folder)
        except _FAILURES as error:
            self.failure = self.failure or error
        finally:
            self.args.output_dir = output_dir
        full = "inline_container" in str(self.failure)  # torch does not say why it could not write
        return _first("the disk is full" if full else None if self.failure is None else str(self.failure))

    def _seal(self, aside: Path, checkpoint: Path) -> str | None:
        failure = None
        if self.args.should_save:
            try:
                seal(aside, checkpoint)
                rotate(checkpoint.parent, self.args.save_total_limit, best_of(checkpoint))
            except OSError as error:
                failure = str(error)
        return _first(failure)

    def remember_best(self, checkpoint: Path) -> None:
        """Take the best checkpoint so far from this one; both are in the same folder, even if the run was moved."""
        best = best_of(checkpoint)
        self.state.best_model_checkpoint = str(best) if best is not None else None
        self.saved_best = (self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint)

    def save_weights(self, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write the files that `load_weights` reads. A failure is reported later, when all processes meet."""
        if not self.args.should_save:  # FSDP and DeepSpeed call this in every process, as all gather the `state_dict`
            return
        try:
            if isinstance(self.model, PeftModel):
                # PEFT's own file leaves out the ranks that AdaLoRA masks, and then does not fit the model.
                folder.mkdir(parents=True, exist_ok=True)
                adapters = adapter_state(self.model)
                save_file({name: (state_dict or adapters)[name] for name in adapters}, folder / SAFE_WEIGHTS_NAME)
                hooks_of(self.model).save(self.model, folder)
            elif isinstance(self.model, PreTrainedModel):
                # By the model's own names; for some models of transformers those on the Hub differ.
                state_dict = whole_state(self.model) if state_dict is None else state_dict
                self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
            else:
                super().save_weights(folder, state_dict)
            if self.average is not None:
                self.average.save(folder)
        except _FAILURES as error:
            self.failure = error

    def load_model(self, checkpoint: Path, model: nn.Module | None) -> None:
        """Load the weights to resume from: strictly, unless FSDP shards the model."""
        if model is None:
            self.load_weights(checkpoint)
        else:
            super().load_model(checkpoint, model)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint, and the files beside them, into a model that is not sharded.

        Raises:
            UserError: see `load_tensors`.
        """
        load_tensors(self.model, load_file(checkpoint / SAFE_WEIGHTS_NAME), checkpoint)
        self.load_beside_weights(checkpoint)

    def load_beside_weights(self, checkpoint: Path) -> None:
        """Load what adapters save beside their weights, and the average."""
        hooks_of(self.model).restore(self.model, checkpoint)
        if self.average is not None:
            self.average.load(checkpoint)

    def load_best_model(self) -> None:
        """Load the weights that validation chose. If a sharded copy trains, the original gets them after training."""
        if not self.sharded and self.state.best_model_checkpoint is not None:
            self.load_weights(Path(self.state.best_model_checkpoint))

    def roll_back(self, checkpoint: Path) -> None:
        """Load weights and optimizer of a checkpoint; schedule, order of images and log continue."""
        schedule = self.lr_scheduler.state_dict()
        self.load_weights(checkpoint)
        self.load_optimizer(checkpoint)
        self.lr_scheduler.load_state_dict(schedule)
        self.take_rates_of_schedule()


class _Resume(TrainerCallback):
    """Loads the parts of a checkpoint that the `Trainer` does not load."""

    def __init__(self, trainer: CheckpointingTrainer, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.remember_best(self.checkpoint)
        self.trainer.progress.load(self.checkpoint)
        if self.trainer.sharded:
            self.trainer.load_beside_weights(self.checkpoint)
        args.eval_on_start = False  # early stopping would count it once more


def load_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], checkpoint: Path) -> None:
    """Load the tensors of a checkpoint. Only those that `save_weights` leaves out may be missing.

    These are the frozen tensors of a model with adapters, and a shared tensor under its other names.

    Raises:
        UserError: another tensor is missing, or the model has no tensor of that name.
    """
    missing, unknown = model.load_state_dict(tensors, strict=False)
    state, saved = model.state_dict(), adapter_state(model) if isinstance(model, PeftModel) else missing
    loaded = {state[name].data_ptr() for name in tensors.keys() & state.keys()}
    missing = [name for name in missing if name in saved and state[name].data_ptr() not in loaded]
    if wrong := [*(f"{name} is missing" for name in missing), *(f"{name} is unknown" for name in unknown)]:
        raise UserError(
            f"output_dir: {checkpoint / SAFE_WEIGHTS_NAME} does not fit the model ({listed(wrong, 3)}): resume "
            "with the versions that wrote it, or start again with --overwrite true"
        )


def _first(failure: str | None) -> str | None:
    """The failure of the first process that has one; the same in all processes."""
    return next((found for found in gather_object([failure]) if found is not None), None)
