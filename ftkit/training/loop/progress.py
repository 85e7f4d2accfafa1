"""The progress shown while a stage trains, and the part of it that checkpoints keep."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerState

from ftkit.console import ProgressLine


class MeanLoss:
    """The mean training loss over images: since the last log, since the last evaluation, and over the stage.

    A batch counts by its images, so a short one weighs less than a full one. Losses stay on their device until they
    are logged, so no step waits for the device. Losses that are not finite do not count.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[torch.Tensor, int]] = []
        self._unlogged = self._unshown = self._stage = (0.0, 0)  # (sum of losses, number of images)

    def note(self, loss: torch.Tensor, images: int) -> None:
        """Add a batch: its mean loss, a scalar, and its number of images."""
        self._batches.append((loss, images))

    def log(self) -> float | None:
        """The mean since the last call, over the images of all processes, or None without images; then start again."""
        sums, counts = zip(*gather_object([self._summed()]), strict=True)
        self._unlogged, new = (0.0, 0), (sum(sums), sum(counts))
        self._unshown, self._stage = _added(self._unshown, new), _added(self._stage, new)
        return _mean(new)

    def show(self) -> float | None:
        """The mean of everything logged since the last call, or None if nothing was; then start again."""
        shown, self._unshown = self._unshown, (0.0, 0)
        return _mean(shown)

    def of_stage(self) -> float | None:
        """The mean of everything logged; None if nothing was."""
        return _mean(self._stage)

    def _summed(self) -> tuple[float, int]:
        losses = torch.stack([loss for loss, _ in self._batches]).tolist() if self._batches else []
        for loss, (_, images) in zip(losses, self._batches, strict=True):
            if math.isfinite(loss):
                self._unlogged = _added(self._unlogged, (loss * images, images))
        self._batches = []
        return self._unlogged

    def state(self) -> dict[str, tuple[float, int]]:
        """The sums and counts of this process that a checkpoint keeps."""
        return {"unlogged": self._summed(), "unshown": self._unshown, "stage": self._stage}

    def restore(self, unlogged: Sequence = (0.0, 0), unshown: Sequence = (0.0, 0), stage: Sequence = (0.0, 0)) -> None:
        """Continue from `state`; older checkpoints lack parts of it."""
        self._batches = []
        self._unlogged, self._unshown, self._stage = tuple(unlogged), tuple(unshown), tuple(stage)


def _added(total: tuple[float, int], new: tuple[float, int]) -> tuple[float, int]:
    return total[0] + new[0], total[1] + new[1]


def _mean(total: tuple[float, int]) -> float | None:
    return total[0] / total[1] if total[1] else None


class EvaluationLines(ProgressCallback):
    """The progress bars of transformers, with a line for each evaluation instead of a dictionary for each log.

    Args:
        losses: the training losses.
        shown: the names of the validation metrics.
    """

    def __init__(self, losses: MeanLoss, shown: Sequence[str]):
        super().__init__()
        self.losses, self.shown = losses, shown
        self.evaluation: ProgressLine | None = None  # of the running evaluation

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.started, self.current_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, dynamic_ncols=True, disable=args.disable_tqdm
            )

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self.evaluation is None:
            self.evaluation = ProgressLine("evaluating", len(eval_dataloader.dataset))
        self.evaluation.add(args.eval_batch_size * args.world_size)

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
        self.evaluation = None

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        control.should_log = True  # an epoch may be shorter than logging_steps

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show nothing before the evaluation."""

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._end_evaluation()
        mean = self.losses.show()
        if not state.is_world_process_zero or self.training_bar is None:
            return
        width = len(f"{args.num_train_epochs:g}")
        loss = "-" if mean is None else f"{mean:.4f}"
        validation = ", ".join(f"{name} {metrics['eval_' + name]:.4f}" for name in self.shown)
        self.training_bar.write(
            f"  epoch {state.epoch:>{width}.4g}/{args.num_train_epochs:g}   loss {loss}   "
            f"validation: {validation}   {time.monotonic() - self.started:.1f} s"
        )


class Progress(TrainerCallback):
    """The state of a stage that the `Trainer`'s checkpoints leave out: losses, seconds, skipped updates.

    Attributes:
        losses: the means over images.
        within_epoch: whether the current epoch is unfinished.
        left_out: number of updates skipped because the gradient was not finite.
        rolled_back: number of times that training returned to the newest checkpoint.
    """

    def __init__(self, process: int):
        self.losses, self.within_epoch = MeanLoss(), False
        self.left_out = self.rolled_back = 0
        self._file = f"progress_{process}.json"
        self._earlier, self._started = 0.0, time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.within_epoch = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.within_epoch = False

    @property
    def seconds(self) -> float:
        """The training time of the stage, including killed processes up to their last checkpoint."""
        return self._earlier + time.monotonic() - self._started

    def save(self, checkpoint: Path) -> None:
        """Write this process's part into a checkpoint."""
        state = {"seconds": self.seconds, "left_out": self.left_out, "losses": self.losses.state()}
        self.rolled_back = 0
        (checkpoint / self._file).write_text(json.dumps(state))

    def load(self, checkpoint: Path) -> None:
        """Continue from this process's part of a checkpoint."""
        state = json.loads((checkpoint / self._file).read_text())
        self._earlier, self._started, self.left_out = state["seconds"], time.monotonic(), state["left_out"]
        self.losses.restore(**state.get("losses", {}))
