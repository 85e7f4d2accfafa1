"""A thin `Trainer` for batches of uint8 images."""

import gc
import importlib.util
import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.data_loader import DataLoaderAdapter
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from ftkit.config import LossArguments
from ftkit.config.training import TrainingArguments
from ftkit.data.augmentation.augment import augment
from ftkit.data.augmentation.mixing import Mixing
from ftkit.data.feeding.loader import EpochBatches, TrainingLoader
from ftkit.data.feeding.tensors import collate
from ftkit.data.pixels.normalize import channels_last
from ftkit.errors import UserError
from ftkit.methods.adalora import RankAllocation, orthogonality
from ftkit.methods.parameter_groups import Setting
from ftkit.models.anatomy import block_classes, is_convolutional
from ftkit.precision import exact_float32, remove_autocast
from ftkit.signals import signals
from ftkit.training.checkpoints import newest_whole
from ftkit.training.ema import WeightAverage
from ftkit.training.finite import Losses, NotFinite, trained_weights
from ftkit.training.left_out import Undo
from ftkit.training.micro_batches import Inputs, in_parts, parts_that_fit, run_in_parts, weigh
from ftkit.training.optimizers import make_optimizer, make_schedule
from ftkit.training.progress import EvaluationLines
from ftkit.training.saving import CheckpointingTrainer
from ftkit.training.sharding import copy_to_shard, gather_into, share_buffers, whole_state
from ftkit.training.trackers import shielded

logger = logging.getLogger(__name__)
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_WAITING = 0.2  # share of the time of training that may go by waiting for data before it is said
_SECONDS = 2.0  # of waiting are too few to speak of
_ROLLBACKS = 3  # to the same checkpoint
_NOT_FINITE = "not_finite.json"  # in a stage's folder
_LOGITS = 1 << 24  # that wait on a device in an evaluation at a time


def _alone(images: int, args: TrainingArguments) -> str:
    """What to do about a last batch of one image, which BatchNorm cannot normalise; the run has begun by then."""
    size, processes = args.per_device_train_batch_size, args.world_size
    rests = ((n, images % (n * processes)) for n in range(size, 1, -1))
    smaller = next((n for n, rest in rests if rest == 0 or rest >= 2 * processes), None)
    fix = (
        f"set dataloader_drop_last: true, or per_device_train_batch_size: {smaller}" if smaller else "take more images"
    )
    return (
        f"the last of the {images:,} images makes a batch alone, and BatchNorm needs two: {fix}. The run's folder "
        "exists by now: add --overwrite true"
    )


def first_output(logits, labels):
    """Only the logits of a model that returns more."""
    return logits[0] if isinstance(logits, tuple) else logits


@dataclass
class Objective:
    """What a stage minimises, and how.

    Attributes:
        args: the loss and its regularisation.
        settings: learning rate and weight decay of every parameter, by name.
        augment: what is done to training images; see `ftkit.data.augmentation.augment`.
        on_nan: what a loss that is not finite leads to; see `JobArguments`.
        steps_before: that were planned for adapters in earlier stages.
    """

    args: LossArguments
    settings: dict[str, Setting]
    augment: list[str]
    on_nan: str = "stop"
    steps_before: int = 0


class ImageTrainer(CheckpointingTrainer):
    """`Trainer` over `Images`: they stay uint8 until they are on the device, then all is done to the batch.

    It also leaves out what costs a step and changes nothing: the walk over all parameters to count floating-point
    operations, the gradient norm where it is not clipped (`max_grad_norm: 0`), and questions after what is not there.
    Where FSDP or DeepSpeed cut a model into pieces, it is a copy that they cut, and the model gets the result.

    Args:
        model: a classifier whose output has `logits` (N, C).
        args: of the stage.
        normalize: from uint8 to what the model takes.
        objective: the loss and what belongs to it; None for a trainer that only predicts.
        train_dataset: to train on.
        eval_dataset: to choose the checkpoint on; needed where there is nothing to train on, for its task.
    """

    loss_is_scaled_for_ga = False  # the loss is the mean over the batch

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        objective: Objective | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
    ):
        # The batches of `ImageTensors` are whole: the Trainer must neither look for columns nor for label names.
        args.remove_unused_columns, args.label_names = False, ["labels"]
        args.logging_nan_inf_filter = False  # the host would wait for every loss; see `_to_be_summed`
        self.loaders: list[DataLoader] = []  # whose workers are to be ended
        self.evaluated_parts = 1  # of a batch, by the memory there is
        if args.eval_accumulation_steps is None:
            logits = args.eval_batch_size * args.world_size * model.config.num_labels  # of a batch
            args.eval_accumulation_steps = max(_LOGITS // logits, 1)
        self.task = (eval_dataset if train_dataset is None else train_dataset).task
        if args.metric_for_best_model is not None:
            args.greater_is_better = self.task.validation()[args.metric_for_best_model.removeprefix("eval_")]
        if args.deepspeed_plugin is not None:
            AcceleratorState._reset_state()  # accelerate takes such a plugin for the first `Trainer` alone
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=lambda found: self.task.validate(found.predictions, found.label_ids),
            preprocess_logits_for_metrics=first_output,
        )
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.add_callback(
            EvaluationLines(self.progress.losses, sorted(self.task.validation(), key=lambda name: name != "loss"))
        )
        self.callback_handler.callbacks = shielded(self.callback_handler.callbacks, args.report_to)
        self.normalize = normalize
        self.channels_last = is_convolutional(model)
        self.waited = self.evaluated = 0.0  # seconds, for batches to train on, and between them
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        self.objective, self.whole = objective, model
        if objective is None:
            self._predict_as_saved()
        else:
            self._set_up(objective)

    def _set_up(self, objective: Objective) -> None:
        args = objective.args
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.model = self.model_wrapped = copy_to_shard(self.model)
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = block_classes(self.model)
        self.loss = self.task.loss(args, self.args.label_smoothing_factor)
        self.losses, self.parts = Losses(), None if self.args.auto_find_batch_size else 1
        self.undo: Undo | None = None
        self.args.auto_find_batch_size = False  # the `Trainer` would take other batches
        self.penalised = [
            parameter
            for name, parameter in self.model.named_parameters()
            if args.l1 and parameter.requires_grad and objective.settings[name].decays
        ]
        self.mixing = Mixing(args.mixup, args.cutmix) if args.mixup or args.cutmix else None
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
            self.args.restore_callback_states_from_checkpoint = True  # a resume goes on counting
        if args.ema_decay is not None:
            self.average = WeightAverage(self.model, args.ema_decay)
            self.add_callback(self.average)
        self.add_callback(RankAllocation(objective.steps_before))

    def _predict_as_saved(self) -> None:
        """What only predicts is not cut into pieces, and computes in float32, as a plain `pipeline` does."""
        self.accelerator.native_amp = False
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.is_fsdp_enabled = self.is_deepspeed_enabled = False
            self._move_model_to_device(self.model, self.args.device)

    def _get_dataloader(self, *args, **kwargs):
        """`dataloader_drop_last` is for training, where the `Trainer` would leave images out of evaluations too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader = super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        self.loaders.append(loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader)
        return loader

    def _end_workers(self) -> None:
        """Those of a loader that is left to the garbage collector wait 5 seconds each before they are ended."""
        for loader in self.loaders:
            loader._iterator = None

    def predict(self, *args, **kwargs):
        """As the `Trainer` does; the worker processes end with it."""
        try:
            with exact_float32():
                return super().predict(*args, **kwargs)
        finally:
            self._end_workers()

    def get_train_dataloader(self) -> TrainingLoader:
        """Batches of `train_dataset`, which are this process's own: accelerate has nothing to add."""
        args, images = self.args, self.train_dataset
        seed = args.seed if args.data_seed is None else args.data_seed
        place = (args.process_index, args.world_size)
        batches = EpochBatches(
            len(images), self._train_batch_size, seed, *place, args.dataloader_drop_last, self.mixing is not None
        )
        loader = TrainingLoader(
            images,
            batches,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        self.loaders.append(loader)
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step, and the time that it took to get them."""
        started = time.perf_counter()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self.waited += time.perf_counter() - started
        weigh(batches, self.args.world_size)
        return batches, None

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        device, training = self.args.device, self.model.training
        images, labels = (inputs[name].to(device, non_blocking=True) for name in ("pixel_values", "labels"))
        rows, following = inputs.get("index"), inputs.get("following")  # in training
        if following is not None:  # what the last image is mixed with
            images = torch.cat([images, following["pixel_values"].to(device, non_blocking=True)])
            labels = torch.cat([labels, following["labels"].to(device, non_blocking=True)])
            rows = torch.cat([rows, following["index"]])
        key = (self.args.seed, int(self.state.epoch)) if training else ()
        if training and self.objective.augment:
            images = augment(images, rows, self.objective.augment, *key)
        images = self._prepare_input(self.normalize(images))  # DeepSpeed has weights of 16 bits, and wants such inputs
        if following is not None:
            images, labels = self.mixing(images, self.task.mixable(labels), rows, *key)
        if self.channels_last:
            images = channels_last(images)
        return {"pixel_values": images, "labels": labels}

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward, without what the `Trainer` asks at every step for others' sake."""
        if not self.model.training:  # an evaluation leaves a wrapper around it as it was
            model.train()
        self.optimizer.train()
        weight, images, inputs = inputs["weight"], inputs["index"], self._prepare_inputs(inputs)
        if self.parts is None:
            own = self.model  # not wrapped, so that no process waits for another
            self.parts = parts_that_fit(own, inputs, lambda part: self._backward(own, part, 1.0), self.optimizer)
        *parts, last = in_parts(inputs, self.parts)
        losses = [self._backward(model, part, share * weight, last=False) for part, share in parts]
        loss = sum(losses, self._backward(model, last[0], last[1] * weight))
        self.losses.note(self.state.global_step + 1, self._get_learning_rate(), images, loss)
        self.progress.losses.note(loss / weight, len(images))
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return self._to_be_summed(loss)

    def _to_be_summed(self, loss: torch.Tensor) -> torch.Tensor:
        """One that is not finite must not hide those after it, where training goes on: their mean stands for it."""
        if self.objective.on_nan == "stop":
            return loss
        steps = 1 + self.state.global_step - self._globalstep_last_logged
        return torch.where(loss.isfinite(), loss, self._tr_loss / steps)

    def _backward(self, model: nn.Module, inputs: Inputs, weight: float, last: bool = True) -> torch.Tensor:
        """The loss times `weight`, and its gradients; processes exchange them after the `last` part of a batch."""
        accelerator = self.accelerator
        with nullcontext() if last else accelerator.no_sync(model):
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs) * weight
            if accelerator.distributed_type in _PLAIN and not accelerator.scaler:
                loss.backward()
            else:
                unscaled = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
                accelerator.backward(loss, **unscaled)
        return loss.detach()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of the batch; in training with L1 and what an adapter adds."""
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs.logits.float()
        if not self.model.training:
            loss = self.task.evaluation_loss(logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss
        loss = self.loss(logits, inputs["labels"]) + orthogonality(self.model)
        if self.penalised:
            loss = loss + self.objective.args.l1 * sum(parameter.abs().sum() for parameter in self.penalised)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, logits and labels of a batch, in as many parts as memory asks for: which changes none of them."""
        step = super().prediction_step
        given, self.evaluated_parts = run_in_parts(
            lambda part: step(model, part, prediction_loss_only, ignore_keys), inputs, self.evaluated_parts
        )
        losses, logits, labels = zip(*(found for found, _ in given), strict=True)
        loss = sum(loss * share for loss, (_, share) in zip(losses, given, strict=True))
        return loss, torch.cat([first_output(some, None) for some in logits]), torch.cat(labels)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, with the learning rate and weight decay that each parameter has in the objective."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = make_optimizer(self.args, model, self.objective.settings)
            if self.objective.on_nan == "skip" and self.args.device.type != "cpu":
                self.undo = Undo(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The schedule of the learning rate."""
        self.lr_scheduler = make_schedule(self.args, optimizer or self.optimizer, num_training_steps)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate the averaged weights where there are such, else the model's own."""
        self._look_at_losses()
        self._share_buffers()
        started = time.perf_counter()
        with self.average.applied() if self.average else nullcontext():
            metrics = super().evaluate(*args, **kwargs)
        self.evaluated += time.perf_counter() - started
        return metrics

    def train(self, *args, **kwargs):
        """Train; the model ends with the weights that validation chose, averaged if they are.

        Raises:
            UserError: the loss is not finite, a batch of one image meets a BatchNorm that needs two, or an operation
                has no deterministic version and `full_determinism` wants one.
        """
        checkpoint = kwargs.get("resume_from_checkpoint")
        try:
            with self._lean(), signals.awaited():
                self.model.train()  # a `PeftModel` says that it trains, and is wrapped around one that evaluates
                stopped = self._stopped_before(checkpoint)
                output = stopped or super().train(*args, **kwargs)
        except RuntimeError as error:
            if not self.args.full_determinism or "deterministic" not in str(error):
                raise
            raise UserError(
                f"full_determinism: {str(error).partition(',')[0]}: leave it out, or take another model"
            ) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(_alone(len(self.train_dataset), self.args)) from error
        if not self.sharded:
            self._share_buffers()
        output.metrics["waiting_for_data"] = self._share_of_waiting(output.metrics.get("train_runtime", 0.0))
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if self.sharded and (kept := best or (stopped and checkpoint)):
            self.whole.load_state_dict(
                whole_state(self.whole, load_file(Path(kept) / SAFE_WEIGHTS_NAME)), strict=False
            )
        elif self.sharded:
            gather_into(self.whole, self.model)
        if self.average is not None:
            self.average.keep(best)
        return output

    @property
    def sharded(self) -> bool:
        """Whether it is a copy of the model that trains, in pieces."""
        return self.model is not self.whole

    @contextmanager
    def _lean(self) -> Iterator[None]:
        """Within, the libraries do not look at every step for what is not there, nor for garbage among themselves."""
        if importlib.util.find_spec("lomo_optim") is None:
            sys.modules["lomo_optim"] = None  # accelerate looks for it three times a step, through all of sys.path
        gc.freeze()  # the Trainer begins with a collection, which would go through every object of the libraries
        if self.channels_last and not self.sharded and not isinstance(self.model, PeftModel):  # DoRA takes plain ones
            self.model.to(memory_format=torch.channels_last)  # as the images: gradients lie as their weights do
        try:
            yield
        finally:
            self._end_workers()
            self.whole.to(memory_format=torch.contiguous_format)
            self._leave_plain(self.whole)
            gc.unfreeze()

    def _leave_plain(self, model: nn.Module) -> None:
        """Take from a model what the arguments of one stage have put around it, and those of the next may not."""
        remove_autocast(model)
        if self.args.gradient_checkpointing:  # the name of old, which mirrors activation_checkpointing
            model.activation_checkpointing_disable()

    def _share_of_waiting(self, seconds: float) -> float:
        """The share of the time of training that went by waiting for data; much of it is said, with what helps."""
        share = self.waited / max(seconds - self.evaluated, self.waited, 1e-9)
        if share > _WAITING and self.waited > _SECONDS:
            workers = self.args.dataloader_num_workers
            logger.warning(
                "training waited for data for %.0f%% of its time: raise dataloader_num_workers (now %d), make the "
                "images smaller once and for all, or let them be decoded once: data_engine: tensor",
                100 * share,
                workers,
            )
        return share

    def _stopped_before(self, checkpoint: str | None) -> TrainOutput | None:
        """The result of a stage that was done when this checkpoint was written: there is nothing to go on with."""
        if checkpoint is None:
            return None
        state, patience = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)), math.inf
        if self.objective.args.early_stopping_patience is not None:
            stopping = state.stateful_callbacks["EarlyStoppingCallback"]["attributes"]
            patience = self.objective.args.early_stopping_patience - stopping["early_stopping_patience_counter"]
        if state.global_step < state.max_steps and patience > 0:
            return None
        self.state = state
        self._remember_best(Path(checkpoint))
        self.progress.load(Path(checkpoint))
        state.log_history.append({"train_loss": self.progress.mean_loss(), "total_flos": state.total_flos,
                                  "epoch": state.epoch, "step": state.global_step})  # fmt: skip
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        elif not self.sharded:
            self._load_from_checkpoint(checkpoint)
        return TrainOutput(state.global_step, 0.0, {"train_samples_per_second": 0.0})

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """The `Trainer`'s own estimate, without counting the parameters at every step."""
        return 6 * inputs["pixel_values"].numel() * self.parameter_count

    def _get_grad_norm(self, model, grad_norm=None):
        if self.objective.on_nan == "skip" and not self.accelerator.scaler:  # which leaves such updates out itself
            if grad_norm is None:
                grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            self._leave_out_unless_finite(model, grad_norm)
        return grad_norm if self.args.max_grad_norm == 0 else super()._get_grad_norm(model, grad_norm)

    def _leave_out_unless_finite(self, model: nn.Module, grad_norm: torch.Tensor) -> None:
        if self.undo is not None and self.undo.possible:
            self.undo.unless(grad_norm.isfinite())
            self.losses.note_gradient(grad_norm)
        elif not math.isfinite(grad_norm):
            model.zero_grad(set_to_none=True)  # an optimizer passes over what has no gradient
            self._say_left_out(self.losses.of(self.state.global_step + 1))

    def _say_left_out(self, update: NotFinite) -> None:
        self.progress.left_out += 1
        logger.warning("  the gradient is not finite, and this update is left out: %s", update)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, after a look at the losses since the last time; the mean is over images, not over steps."""
        self._look_at_losses()
        if "loss" in logs and (mean := self.progress.losses.log()) is not None:
            logs["loss"] = mean
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        self._look_at_losses()
        self._share_buffers()
        super()._save_checkpoint(model, trial)

    def _share_buffers(self) -> None:
        """Before weights are evaluated or kept: the same buffers in all processes, those of the average too."""
        share_buffers(self.model)
        if self.average is not None:
            share_buffers(self.average.averaged)

    def _look_at_losses(self) -> None:
        """Do what `on_nan` says about a loss that is not finite; before anything is evaluated, saved or logged.

        Raises:
            UserError: there is such a loss, and the run is to stop, or has no way back.
        """
        if not self.is_in_train:
            return
        for update in self.losses.without_finite_gradient():
            self._say_left_out(update)
        found = self.losses.take([] if self.sharded else trained_weights(self.model))
        if found is None or (self.objective.on_nan == "skip" and self._weights_are_finite()):
            return
        checkpoint, again = newest_whole(Path(self.args.output_dir)), self.progress.rolled_back
        if self.objective.on_nan == "rollback" and checkpoint is not None and again < _ROLLBACKS:
            logger.warning("  %s: back to the weights of %s", found, checkpoint)
            self.progress.rolled_back += 1
            self._roll_back(checkpoint)
            return
        if self.args.should_save:
            found.write(Path(self.args.output_dir) / _NOT_FINITE)
        saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        often = f" after {again} returns to the same weights" if again else ""
        raise UserError(
            f"{found}{often}; {saved}, and all images of the batch are in {Path(self.args.output_dir) / _NOT_FINITE}. "
            "Lower learning_rate, clip with max_grad_norm: 1.0, or go on with on_nan: skip or rollback"
        )

    def _weights_are_finite(self) -> bool:
        # A forward pass moves buffers even if it overflows.
        kept = (*trained_weights(self.model), *self.model.buffers())
        return self.sharded or all(bool(tensor.isfinite().all()) for tensor in kept)

    def _roll_back(self, checkpoint: Path) -> None:
        """Take weights and optimizer from a checkpoint; the schedule, the order of images and the log go on."""
        schedule = self.lr_scheduler.state_dict()
        self._load_weights(checkpoint)
        self._load_optimizer_and_scheduler(str(checkpoint))
        self.lr_scheduler.load_state_dict(schedule)
        self._take_rates_of_schedule()
