"""An epoch of MNIST, ftkit's convnet, bf16: a model of some size."""

from benchmarks.data import Bench, make_setup
from benchmarks.sides import ftkit, raw, train, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """Raw and ftkit."""
    setup = make_setup(bench, "mnist", 512, model="convnet", bf16=True)
    sides = warmed(train, setup, raw, ftkit)
    return Row(f"MNIST, {setup}, convnet, bf16: an epoch", sides, ["ftkit / raw <= 1.1"])
