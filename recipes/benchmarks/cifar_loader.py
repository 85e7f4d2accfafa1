"""The loader alone, on CIFAR-10 with random crop and flip: a pass over all batches, no model."""

from benchmarks.data import CROP_AND_FLIP, Bench, make_setup
from benchmarks.sides import ftkit, load, stock, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """Stock and ftkit."""
    setup = make_setup(bench, "cifar10", 128, model="convnet", augment=CROP_AND_FLIP)
    sides = warmed(load, setup, stock, ftkit)
    return Row(f"CIFAR-10, {setup}, crop and flip: a pass of the loader", sides, ["stock / ftkit >= 40"])
