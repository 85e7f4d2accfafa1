"""An epoch of MNIST, MLP 784-512-10, fp32: a small model, of which the loop around it is a large part."""

from benchmarks.data import HIDDEN, Bench, make_setup
from benchmarks.sides import ftkit, raw, stock, train, tutorial, warmed
from benchmarks.timing import Row


def row(bench: Bench) -> Row:
    """All four sides."""
    setup = make_setup(bench, "mnist", 64, model="mlp", model_args={"hidden_sizes": [HIDDEN]})
    sides = warmed(train, setup, stock, tutorial, raw, ftkit)
    return Row(f"MNIST, {setup}, MLP: an epoch", sides, ["stock / ftkit >= 6", "ftkit / raw <= 1.35"])
