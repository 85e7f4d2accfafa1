"""An epoch of MNIST, ftkit's convnet, bf16: a model of some size."""

from benchmarks.data import Bench, make_task
from benchmarks.sides import ftkit, raw, train, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """Raw and ftkit."""
    task = make_task(bench, "mnist", 512, model="convnet", bf16=True)
    sides = warmed(train, task, raw, ftkit)
    return Row(f"MNIST, {task}, convnet, bf16: an epoch", sides, ["ftkit / raw <= 1.1"])
