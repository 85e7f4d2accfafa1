"""Console output: banners, facts, and the progress of long steps."""

import logging
import sys
import time
import warnings
from typing import Self

import datasets
import transformers
from tqdm.auto import tqdm

from ftkit.config.arguments.training import TrainingArguments
from ftkit.errors import printable

logger = logging.getLogger("ftkit")
_PATIENCE = 3.0  # seconds before a step shows its progress
_LONGEST_SILENCE = 300.0  # seconds between two lines


class _Printable(logging.Formatter):
    """Escapes control characters in names of files and labels, which a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), but="\n\t")


def set_up_console(args: TrainingArguments) -> None:
    """Send ftkit's log to standard output, from the main process alone: the others see the same data and model.

    The libraries' own messages appear with `log_level: info`.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Printable("%(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
    if args.disable_tqdm:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # a bar for each file of a checkpoint
    if args.get_process_log_level() > logging.INFO:
        transformers.utils.logging.set_verbosity_error()
        warnings.filterwarnings("ignore", module="torch.utils.data")
        # PEFT uses a deprecated name of transformers, and does not list the norms that `ln_tuning` was tested on.
        warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def warn_of_idle_gpus(args: TrainingArguments) -> None:
    """Warn that only one of several GPUs is used, with the command that uses all."""
    if args.idle_gpus:
        logger.warning(
            "  only %s of %d GPUs is used; to use all:\n"
            "    accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes %d …",
            args.device,
            args.idle_gpus + 1,
            args.idle_gpus + 1,
        )


def banner(title: str) -> None:
    """Announce a step of the run."""
    logger.info("\n── %s %s", title, "─" * (60 - len(title)))


def fact(name: str, value: object) -> None:
    """Log one line of a step: a name and its value."""
    logger.info("  %-12s %s", name, value)


class ProgressLine:
    """The progress of a step and the time left: a bar on a terminal, else log lines; nothing for a quick step.

    Lines are logged after 3 s, 6 s, 12 s, … and at least every 5 minutes.

    Args:
        what: the step, such as `decoding images`.
        total: number of images.
    """

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self.started = time.monotonic()
        self._next = _PATIENCE
        bar = sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
        self._bar = tqdm(total=total, desc=what, unit="image", delay=_PATIENCE, leave=False) if bar else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, count: int) -> None:
        """Count `count` more images as done."""
        count = min(count, self.total - self.done)
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        seconds = time.monotonic() - self.started
        if seconds >= self._next and 0 < self.done < self.total:
            self._next = seconds + min(seconds, _LONGEST_SILENCE)
            left = _duration(seconds * (self.total - self.done) / self.done)
            logger.info("  %s: %s of %s, about %s left", self.what, f"{self.done:,}", f"{self.total:,}", left)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    """A time for readers, such as `50 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
