"""The loader alone, on MNIST: a pass over all batches, no model."""

from benchmarks.data import Bench, make_task
from benchmarks.sides import ftkit, load, stock, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """Stock and ftkit."""
    task = make_task(bench, "mnist", 64, model="convnet")
    sides = warmed(load, task, stock, ftkit)
    return Row(f"MNIST, {task}: a pass of the loader", sides, ["stock / ftkit >= 40"])
