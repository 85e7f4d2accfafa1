"""Console output: banners, facts, and progress bars only on a terminal."""

import logging
import sys
import warnings

import datasets
import transformers

from ftkit.config.arguments.training import TrainingArguments
from ftkit.errors import printable

logger = logging.getLogger("ftkit")


class _Printable(logging.Formatter):
    """Escapes control characters, which names of files and labels may hold and a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), but="\n\t")


def set_up_console(args: TrainingArguments) -> None:
    """Send ftkit's log to standard output: everything from the main process, warnings from the others.

    The libraries' own messages appear with `log_level: info`.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Printable("%(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    if args.disable_tqdm:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # a bar for each file of a checkpoint
    if args.get_process_log_level() > logging.INFO:
        transformers.utils.logging.set_verbosity_error()
        warnings.filterwarnings("ignore", module="torch.utils.data")
        # PEFT uses a deprecated name of transformers, and does not list the norms that `ln_tuning` was tested on.
        warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def say_idle_gpus(args: TrainingArguments) -> None:
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
