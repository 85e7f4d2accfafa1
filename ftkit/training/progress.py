"""What is shown while a stage trains."""

import time

from tqdm.auto import tqdm
from transformers.trainer_callback import ProgressCallback


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
