"""The loader alone, on CIFAR-10 with random crop and flip: a pass over all batches, no model."""

from benchmarks.data import CROP_AND_FLIP, Bench, make_task
from benchmarks.sides import ftkit, load, stock, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """Stock and ftkit."""
    task = make_task(bench, "cifar10", 128, model="convnet", augment=CROP_AND_FLIP)
    sides = warmed(load, task, stock, ftkit)
    return Row(f"CIFAR-10, {task}, crop and flip: a pass of the loader", sides, ["stock / ftkit >= 40"])
