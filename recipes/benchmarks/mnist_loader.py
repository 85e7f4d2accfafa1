"""The loader alone, on MNIST: a pass over all batches, no model."""

from benchmarks.data import Bench, make_setup
from benchmarks.sides import ftkit, load, stock, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """Stock and ftkit."""
    setup = make_setup(bench, "mnist", 64, model="convnet")
    sides = warmed(load, setup, stock, ftkit)
    return Row(f"MNIST, {setup}: a pass of the loader", sides, ["stock / ftkit >= 40"])
