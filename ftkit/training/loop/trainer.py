"""The `Trainer` for batches of uint8 images."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from ftkit.compat.accelerate import clear_device_cache, inner_loader
from ftkit.compat.torch import end_workers
from ftkit.config.arguments.training import TrainingArguments
from ftkit.data.feeding.loader import TrainingLoader, training_loader
from ftkit.data.feeding.tensors import collate
from ftkit.methods.adapter_kinds import hooks_of
from ftkit.models.anatomy import is_convolutional
from ftkit.precision import exact_float32
from ftkit.signals import signals
from ftkit.tasks import Task
from ftkit.training.checkpointing.saving import CheckpointingTrainer
from ftkit.training.loop.ema import WeightAverage
from ftkit.training.loop.explained import explained
from ftkit.training.loop.inputs import Preparation
from ftkit.training.loop.lean import lean
from ftkit.training.loop.micro_batches import Inputs, in_parts, parts_that_fit, run_in_parts, weigh
from ftkit.training.loop.not_finite import Guard
from ftkit.training.loop.objective import Objective
from ftkit.training.loop.optimizers import make_optimizer, make_schedule
from ftkit.training.loop.progress import EvaluationLines
from ftkit.training.loop.sharding import (
    allow_another_trainer,
    backward,
    gather_into,
    load_into,
    predict_unsharded,
    share_buffers,
    train_a_copy,
)
from ftkit.training.loop.waiting import Waiting
from ftkit.training.trackers import shielded

_LOGITS = 1 << 24  # the most that an evaluation keeps on a device


class ImageTrainer(CheckpointingTrainer):
    """`Trainer` over `Images`, whose batches stay uint8 until they are on the device.

    It skips work that slows a step and changes nothing: the walk over all parameters to count floating-point
    operations, the gradient norm if nothing is clipped (`max_grad_norm: 0`), and the search for missing packages.
    FSDP and DeepSpeed train a sharded copy; the model itself gets the trained weights at the end.

    Args:
        model: a classifier whose output has `logits` (N, C).
        args: the stage's training arguments.
        normalize: function from uint8 to the model's input.
        objective: the loss and its settings; None for a trainer that only predicts.
        train_dataset: the images to train on.
        eval_dataset: the images to choose the checkpoint on; without `train_dataset`, they determine the task.
    """

    loss_is_scaled_for_ga = False  # the loss is the mean over the batch
    objective: Objective  # only set if it trains
    train_dataset: Any  # `Images`, or `Features` in their place

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        objective: Objective | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
    ):
        # `Images` have no columns to remove, and the signature need not be searched for labels.
        args.remove_unused_columns, args.label_names = False, ["labels"]
        args.logging_nan_inf_filter = False  # the filter makes the host wait for every loss
        self.loaders: list[DataLoader] = []  # their workers are ended after training
        self.evaluated_parts = 1  # parts of a batch in an evaluation, more if memory is short
        if args.eval_accumulation_steps is None:
            config: Any = model.config
            logits = args.eval_batch_size * args.world_size * config.num_labels  # the number in a batch
            args.eval_accumulation_steps = max(_LOGITS // logits, 1)
        images: Any = eval_dataset if train_dataset is None else train_dataset
        self.task: Task = images.task
        if args.metric_for_best_model is not None:
            args.greater_is_better = self.task.validation()[args.metric_for_best_model.removeprefix("eval_")]
        allow_another_trainer(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=lambda found: self.task.validate(found.predictions, found.label_ids),
        )
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.add_callback(EvaluationLines(self.progress.losses, [*self.task.validation()]))
        self.callback_handler.callbacks = shielded(self.callback_handler.callbacks, args.report_to)
        self.waiting, mixable = Waiting(), self.task.mixable
        self.prepare = Preparation(args, normalize, self.to_device, mixable, objective, is_convolutional(model))
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        if objective is None:
            self.accelerator.native_amp = False  # predict in float32, as a plain `pipeline` does
            predict_unsharded(self)
        else:
            self._set_up(objective)

    def _set_up(self, objective: Objective) -> None:
        self.objective, args = objective, objective.args
        train_a_copy(self)
        self.loss, self.guard = self.task.loss(args, self.args.label_smoothing_factor), Guard(self, objective.on_nan)
        self.parts = None if self.args.auto_find_batch_size else 1
        self.args.auto_find_batch_size = False  # the `Trainer` would train on other batches
        self.penalised = objective.penalised(self.model)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
            self.args.restore_callback_states_from_checkpoint = True  # a resume continues the count
        if args.ema_decay is not None:
            self.average = WeightAverage(self.model, args.ema_decay)
            self.add_callback(self.average)
        for callback in hooks_of(self.model).callbacks(objective.steps_before):
            self.add_callback(callback)

    def get_train_dataloader(self) -> TrainingLoader:
        """Batches of `train_dataset` for only this process, so accelerate need not distribute them."""
        loader = training_loader(self.args, self.train_dataset, mixed=self.prepare.mixing is not None)
        self.loaders.append(loader)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The `Trainer`'s own loader, over all images."""
        return self._of_all_images(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """The `Trainer`'s own loader, over all images."""
        return self._of_all_images(super().get_test_dataloader, test_dataset)

    def _of_all_images(self, make: Callable[[Any], DataLoader], images: Dataset | None) -> DataLoader:
        """Make a loader without `dataloader_drop_last`, which the `Trainer` would apply to evaluations too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader = make(images)
        finally:
            self.args.dataloader_drop_last = drop_last
        self.loaders.append(inner_loader(loader))
        return loader

    def _end_workers(self) -> None:
        for loader in self.loaders:
            end_workers(loader)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, None]:
        """The weighted batches of an optimizer step; the time that they took counts as waiting."""
        with self.waiting.counted():
            batches = list(itertools.islice(epoch_iterator, num_batches))
        weigh(batches, self.args.world_size)
        return batches, None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward, without the `Trainer`'s checks for features that ftkit does not use."""
        if not self.model.training:  # after an evaluation; a wrapper around the model is still in training mode
            model.train()
        self.optimizer.train()
        weight, images, inputs = inputs["weight"], inputs["index"], self.prepare(inputs)
        if self.parts is None:
            own = self.model  # not wrapped: no process waits for another
            self.parts = parts_that_fit(own, inputs, lambda part: self._backward(own, part, 1.0), self.optimizer)
        *parts, last = in_parts(inputs, self.parts)
        losses = [self._backward(model, part, share * weight, last=False) for part, share in parts]
        loss = sum(losses, self._backward(model, last[0], last[1] * weight))
        self.guard.losses.note(self.state.global_step + 1, self.optimizer.param_groups[0]["lr"], images, loss)
        self.progress.losses.note(loss / weight, len(images))
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss

    def _backward(self, model: nn.Module, inputs: Inputs, weight: float, last: bool = True) -> torch.Tensor:
        """The loss times `weight`, with its gradients added; processes average them after a batch's `last` part."""
        with nullcontext() if last else self.accelerator.no_sync(model):
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs) * weight
            backward(self.accelerator, loss)
        return loss.detach()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of the batch; in training, L1 and the adapter's own term are added."""
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs.logits.float()
        if not self.model.training:
            loss = self.task.evaluation_loss(logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss
        loss = self.loss(logits, inputs["labels"]) + hooks_of(self.model).loss_term(self.model)
        if self.penalised:
            loss = loss + self.objective.args.l1 * sum(parameter.abs().sum() for parameter in self.penalised)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """Loss, logits and labels of a batch, computed in more parts if memory is short; the values are the same."""
        step = super().prediction_step
        parts = self.evaluated_parts
        given, self.evaluated_parts = run_in_parts(
            lambda part: step(model, self.prepare(part), prediction_loss_only, ignore_keys), inputs, parts
        )
        losses, logits, labels = zip(*(found for found, _ in given), strict=True)
        loss = sum(loss * share for loss, (_, share) in zip(losses, given, strict=True))
        # A model may return more than logits.
        plain = torch.cat([some[0] if isinstance(some, tuple) else some for some in logits])
        return loss, plain, torch.cat(labels)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, with each parameter's learning rate and weight decay from the objective."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = make_optimizer(self.args, model, self.objective.settings)
            self.guard.watch(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule."""
        self.lr_scheduler = make_schedule(self.args, optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:  # type: ignore[override]  # ftkit uses no more
        """Train; the model ends with the weights that validation chose, or their average with `ema_decay`.

        Raises:
            UserError: the loss is not finite, or torch cannot do what an argument asks for; see `explained`.
        """
        checkpoint, done = resume_from_checkpoint and Path(resume_from_checkpoint), None
        with explained(self.args), signals.deferred():
            try:
                with lean(self.original, self.sharded, bool(self.args.gradient_checkpointing)):
                    self.model.train()  # a new `PeftModel` is in training mode, but its base model may not be
                    if checkpoint:
                        done = self.finished_before(checkpoint, self.objective.args.early_stopping_patience)
                    output = done or super().train(resume_from_checkpoint)
            finally:
                self._end_workers()
        workers = self.args.dataloader_num_workers
        output.metrics["waiting_for_data"] = self.waiting.share(output.metrics.get("train_runtime", 0.0), workers)
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if not self.sharded:
            self._share_buffers()
        elif kept := best or (done and checkpoint):
            load_into(self.original, Path(kept))
        else:
            gather_into(self.original, self.model)
        if self.average is not None:
            self.average.keep(best)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights if there are any, else the model's own."""
        self._check_losses()
        self._share_buffers()
        with self.waiting.suspended(), self.average.applied() if self.average else nullcontext():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict in exact float32, and end the worker processes."""
        try:
            with exact_float32():
                return super().predict(*args, **kwargs)
        finally:
            self._end_workers()

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """The `Trainer`'s own estimate, with the parameters counted once instead of at every step."""
        return 6 * inputs["pixel_values"].numel() * self.parameter_count

    def gradient_norm(self, model: nn.Module, clipped: torch.Tensor | None) -> torch.Tensor | float | None:
        """The norm for the log, checked by the guard; computed only if something else needs it too."""
        norm = self.guard.check_gradient(model, clipped)
        return norm if self.args.max_grad_norm == 0 else super().gradient_norm(model, norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, after checking the losses so far; means are over images whose loss is finite."""
        self._check_losses()
        for name, mean in (("loss", self.progress.losses.log), ("train_loss", self.progress.losses.of_stage)):
            if name in logs and (value := mean()) is not None:
                logs[name] = value
            else:
                logs.pop(name, None)
        super().log(logs, start_time)

    def save_checkpoint(self) -> None:
        """Save a checkpoint of weights that are finite, with the same buffers in all processes."""
        self._check_losses()
        self._share_buffers()
        super().save_checkpoint()

    def _check_losses(self) -> None:
        if self.is_in_train:
            self.guard.check_losses()

    def _share_buffers(self) -> None:
        """Give all processes the same buffers, those of the average too, before weights are evaluated or saved."""
        share_buffers(self.model)
        if self.average is not None:
            share_buffers(self.average.averaged)
