"""Decoding PNG files into the tensor cache, against PIL on all cores; and the start after that."""

import shutil

from benchmarks.data import Bench, as_png, make_setup
from benchmarks.decoding import decode, over_all, pool_of
from benchmarks.timing import Row, Side, clock
from ftkit.data.feeding.tensors import image_tensors
from ftkit.data.pixels.images import encoded


def row(bench: Bench) -> Row:
    """MNIST and CIFAR-10: the first start, PIL alone, and the second start."""
    sides = cache_sides(bench, "mnist") | cache_sides(bench, "cifar10")
    goals = [f"{name} / {name}_pil <= 1.2" for name in ("mnist", "cifar10")]
    goals += [f"{name}_again < 1" for name in ("mnist", "cifar10")]
    return Row("PNG files of MNIST and CIFAR-10 into the tensor cache, PIL alone, the next start", sides, goals)


def cache_sides(bench: Bench, name: str) -> dict[str, Side]:
    """The three sides of one dataset."""
    setup = make_setup(bench, name, 128, model="convnet")
    png, folder = as_png(setup.rows), bench.folder / f"first-{name}"
    files = encoded(png)[:]["image"]

    def start(number: int) -> dict[str, float]:
        return clock(lambda: image_tensors(png, setup.processor, setup.info.channels, cache_dir=str(folder)), len(png))

    def first_start(number: int) -> dict[str, float]:
        shutil.rmtree(folder, ignore_errors=True)
        return start(number)

    def alone() -> None:
        with pool_of(files) as pool:
            over_all(pool, decode, len(files))

    return {name: first_start, f"{name}_pil": lambda number: clock(alone, len(png)), f"{name}_again": start}
