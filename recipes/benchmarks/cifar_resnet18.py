"""The data's share of a training step of timm's ResNet-18 at 32 x 32 pixels; an epoch would take minutes."""

from functools import partial

from transformers import set_seed

from benchmarks.data import CROP_AND_FLIP, Bench, make_setup
from benchmarks.sides import ftkit, load, stock, warmed
from benchmarks.timing import Row, Side, clock


def row(bench: Bench) -> Row:
    """The loaders of stock and ftkit, and a step of training."""
    steps = bench.args.steps
    setup = make_setup(bench, "cifar10", 128, model="timm/resnet18", augment=CROP_AND_FLIP, max_steps=steps)
    images = steps * setup.batch_size

    def step(number: int) -> dict[str, float]:
        set_seed(number)
        return clock(ftkit(setup).train, images, steps)

    loading = warmed(load, setup, ftkit)["ftkit"]
    sides: dict[str, Side] = {
        "stock_loader": partial(load, stock, setup.first(images)),
        "loader": loading,
        "step": step,
    }
    what = f"CIFAR-10, {setup}, crop and flip, ResNet-18: the data's share of {steps} steps"
    return Row(what, sides, ["loader / step < 0.03"], "seconds_per_batch")
