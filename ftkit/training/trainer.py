"""A thin `Trainer` for batches of uint8 images."""

import math
import time

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ftkit.data.pixels import Normalize8Bit
from ftkit.data.tensors import ImageTensors, collate
from ftkit.errors import UserError


def accuracy_and_loss(prediction) -> dict[str, float]:
    """Accuracy and mean cross-entropy from the logits (N, C) and labels (N,) of an `EvalPrediction`.

    The loss replaces the `Trainer`'s own, which averages batches (wrong under a ragged last batch) and includes label
    smoothing.
    """
    logits = torch.from_numpy(np.asarray(prediction.predictions)).double()
    labels = torch.from_numpy(prediction.label_ids)
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "loss": F.cross_entropy(logits, labels).item(),
    }


class EvaluationLines(ProgressCallback):
    """The progress bars of transformers, and one line for each evaluation instead of a dictionary for each log."""

    def __init__(self):
        super().__init__()
        self.losses: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.current_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, dynamic_ncols=True, disable=args.disable_tqdm
            )

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log = True  # an epoch may be shorter than logging_steps

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        if not state.is_world_process_zero or self.training_bar is None:
            return
        width = len(f"{args.num_train_epochs:g}")
        loss = f"{sum(self.losses) / len(self.losses):.4f}" if self.losses else "-"
        self.losses = []
        self.training_bar.write(
            f"  epoch {state.epoch:>{width}.4g}/{args.num_train_epochs:g}   loss {loss}   validation: loss "
            f"{metrics['eval_loss']:.4f}, accuracy {metrics['eval_accuracy']:.4f}   "
            f"{time.monotonic() - self.started:.1f} s"
        )


def first_output(logits, labels):
    """Only the logits of a model that returns more."""
    return logits[0] if isinstance(logits, tuple) else logits


class ImageTrainer(Trainer):
    """`Trainer` over `ImageTensors`: images stay uint8 until they are on the device, then are normalised as a batch.

    It also leaves out what costs a step and changes nothing: the walk over all parameters to count floating-point
    operations, and the gradient norm where it is not clipped (`max_grad_norm: 0`). A loss that is not finite ends
    the run when it is logged.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        normalize: Normalize8Bit,
        train_dataset: ImageTensors | None = None,
        eval_dataset: ImageTensors | None = None,
        early_stopping_patience: int | None = None,
    ):
        # The batches of `ImageTensors` are whole: the Trainer must neither look for columns nor for label names.
        args.remove_unused_columns, args.label_names = False, ["labels"]
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=accuracy_and_loss,
            preprocess_logits_for_metrics=first_output,
        )
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.add_callback(EvaluationLines())
        if early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience))
        self.normalize = normalize
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = super()._prepare_inputs(inputs)
        return {**inputs, "pixel_values": self.normalize(inputs["pixel_values"])}

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """The `Trainer`'s own estimate, without counting the parameters at every step."""
        return 6 * inputs["pixel_values"].numel() * self.parameter_count

    def _get_grad_norm(self, model, grad_norm=None):
        return grad_norm if self.args.max_grad_norm == 0 else super()._get_grad_norm(model, grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and stop where the training loss is not finite.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                f"the loss is {logs['loss']} at step {self.state.global_step} (learning rate "
                f"{logs.get('learning_rate', math.nan):.3g}): lower learning_rate, or clip with max_grad_norm: 1.0"
            )
