"""A `Trainer` whose checkpoints are complete or invisible, and which goes on from one exactly where it was."""

import logging
import shutil
from pathlib import Path

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from ftkit.errors import Interrupted, UserError
from ftkit.files import hidden
from ftkit.methods.adapter_kinds import hooks_of
from ftkit.methods.adapters import adapter_state
from ftkit.signals import signals
from ftkit.training.checkpoints import best_of, rotate, seal
from ftkit.training.continuity import Fingerprint
from ftkit.training.ema import WeightAverage
from ftkit.training.progress import Progress

logger = logging.getLogger(__name__)
_FAILURES = (OSError, RuntimeError, SafetensorError)  # to write a file


class CheckpointingTrainer(Trainer):
    """`Trainer` with checkpoints that hold all that a run depends on, adapters and averages too, or do not exist.

    Attributes:
        progress: what a `Trainer` forgets between two lines of its log.
        fingerprint: of the run, which lies in every checkpoint; None for a trainer that only predicts.
        average: of the weights, where there is one.
        saved_best: the best value so far whose weights lie in a checkpoint, its step and that checkpoint.
        lost_best: a checkpoint that validation preferred to these, if neither it nor a later one could be written.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.progress, self.average = Progress(self), None
        self.average: WeightAverage | None
        self.fingerprint: Fingerprint | None = None
        self.add_callback(self.progress)
        self.saved_best: tuple[float | None, int | None, str | None] = (None, None, None)
        self.lost_best: Path | None = None

    def train(self, *args, **kwargs):
        """As the `Trainer` does.

        Raises:
            UserError: from the checkpoint that validation chose to the end, none could be written. With other weights
                the stage would count as done.
        """
        output = super().train(*args, **kwargs)
        if self.lost_best is not None and self.args.load_best_model_at_end:
            raise UserError(
                f"output_dir: validation chose {self.lost_best}, which could not be written: make room there, or "
                "allow it, and the same command goes on from what is saved"
            )
        return output

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs):
        """Log, evaluate and save what is due; then save and end if the run was told to.

        What is due at the last step of an epoch waits until the epoch has ended: a checkpoint between the two would
        resume in the next epoch, and never evaluate this one.
        """
        if self.progress.within_epoch and (
            self.state.epoch % 1 == 0 or self.state.global_step >= self.state.max_steps
        ):
            return
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        save, stop = signals.agreed()
        if save and not self._checkpoint().is_dir():
            self._save_checkpoint(model, trial)
        if stop:
            raise Interrupted(stop)

    def _checkpoint(self) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model, trial):
        """Save aside, seal, rename. Where the disk is full, training goes on without this checkpoint."""
        checkpoint = self._checkpoint()
        aside = hidden(checkpoint.with_name("saving"))
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        failure = self._write(aside / checkpoint.name, model, trial)
        if self.state.best_model_checkpoint is not None:
            self.state.best_model_checkpoint = str(checkpoint.with_name(Path(self.state.best_model_checkpoint).name))
        if failure is None:
            failure = self._give_name(aside / checkpoint.name, checkpoint)
        if failure is not None:
            # A best value whose weights were not kept is forgotten.
            if self.state.best_global_step == self.state.global_step:
                self.lost_best = checkpoint
            self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint = self.saved_best
            level = logging.WARNING if self.args.should_save else logging.DEBUG  # once for all processes
            logger.log(level, "%s could not be written, training goes on without it: %s", checkpoint, failure)
        elif self.state.best_model_checkpoint is not None:
            self.lost_best = None
            self.saved_best = (self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, model, trial) -> str | None:
        """Each process writes its part; why one could not, the same in all of them."""
        self.failure, output_dir = None, self.args.output_dir
        self.args.output_dir = str(folder.parent)
        try:
            super()._save_checkpoint(model, trial)
            self.progress.save(folder)
            if self.args.should_save:
                self.fingerprint.save(folder)
        except _FAILURES as error:
            self.failure = self.failure or error
        finally:
            self.args.output_dir = output_dir
        full = "inline_container" in str(self.failure)  # torch does not say why it could not write
        return _first("the disk is full" if full else self.failure and str(self.failure))

    def _give_name(self, aside: Path, checkpoint: Path) -> str | None:
        failure = None
        if self.args.should_save:
            try:
                seal(aside, checkpoint)
                rotate(checkpoint.parent, self.args.save_total_limit, best_of(checkpoint))
            except OSError as error:
                failure = str(error)
        return _first(failure)

    def _init_training_state(self, max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial):
        """As the `Trainer` does; the best checkpoint lies beside the one that is resumed, wherever that is now."""
        where = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None:
            self._remember_best(Path(resume_from_checkpoint))
            self.args.eval_on_start = False  # a resume is no start, and early stopping would count it
        return where

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the `Trainer` does; torch refuses the state of an optimizer, such as plain SGD, that has none."""
        if checkpoint is None or not self.is_fsdp_enabled or _has_state(Path(checkpoint) / OPTIMIZER_NAME_BIN):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        self._take_rates_of_schedule()

    def _take_rates_of_schedule(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _remember_best(self, checkpoint: Path) -> None:
        best = best_of(checkpoint)
        self.state.best_model_checkpoint = str(best) if best is not None else None
        self.saved_best = (self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint)

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:  # FSDP and DeepSpeed ask every process, since all gather the `state_dict`
            return
        try:
            self._save_weights(Path(output_dir), state_dict)
        except _FAILURES as error:  # told when the others, who wait for this process, have been met
            self.failure = error

    def _save_weights(self, output_dir: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
        if isinstance(self.model, PeftModel):
            # PEFT's own file may leave ranks out (AdaLoRA's masked ones), and then does not load into its own model.
            output_dir.mkdir(parents=True, exist_ok=True)
            adapters = adapter_state(self.model)
            whole = {name: (state_dict or adapters)[name] for name in adapters}
            save_file(whole, output_dir / SAFE_WEIGHTS_NAME)
            hooks_of(self.model).save(self.model, output_dir)
        elif isinstance(self.model, PreTrainedModel):
            # By the names that they are loaded by: those of the Hub are others, for some models of transformers.
            self.model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)
        else:
            super()._save(str(output_dir), state_dict)
            (output_dir / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, and config.yaml says it all
        if self.average is not None:
            self.average.save(output_dir)

    def _load_best_model(self):
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # it is the whole model that gets the weights, when training has ended
        if isinstance(self.model, PeftModel):
            best = load_file(Path(self.state.best_model_checkpoint) / SAFE_WEIGHTS_NAME)
            self.model.load_state_dict(best, strict=False)
            hooks_of(self.model).restore(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._load_weights(Path(resume_from_checkpoint), model)
        self.progress.load(Path(resume_from_checkpoint))

    def _load_weights(self, checkpoint: Path, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(str(checkpoint), model)
        hooks_of(self.model).restore(self.model, checkpoint)
        if self.average is not None:
            self.average.load(checkpoint)


def _has_state(optimizer: Path) -> bool:
    return bool(torch.load(optimizer, map_location="cpu", weights_only=True, mmap=True)["state"])


def _first(failure: str | None) -> str | None:
    """The failure of the first process that has one, in all of them."""
    return next((told for told in gather_object([failure]) if told is not None), None)
