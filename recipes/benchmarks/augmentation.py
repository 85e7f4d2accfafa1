"""Crop, flip and cutout of a batch as a whole, against torchvision image by image."""

import statistics
import timeit
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from benchmarks.data import CROP_AND_FLIP, Bench
from benchmarks.timing import Row
from ftkit.data.augmentation.augment import augment

REPEATS = 20  # of a batch's augmentation, within a round


def row(bench: Bench) -> Row:
    """Torchvision and ftkit."""
    count, side = min(512, bench.args.images or 512), 32
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    square, steps = (8 / side) ** 2, [*CROP_AND_FLIP, "cutout"]
    erasing = v2.RandomErasing(p=1, scale=(square, square), ratio=(1, 1), value=0)
    transform = v2.Compose([v2.RandomCrop(side, padding=4), v2.RandomHorizontalFlip(), erasing])

    def timed(job: Callable[[], torch.Tensor]) -> dict[str, float]:
        job()
        seconds = statistics.median(timeit.repeat(job, number=1, repeat=REPEATS))
        return {"seconds": seconds, "images_per_second": count / seconds}

    sides = {
        "torchvision": lambda number: timed(lambda: torch.stack([transform(image) for image in images])),
        "ftkit": lambda number: timed(lambda: augment(images, torch.arange(count), steps, number, 0)),
    }
    what = f"crop, flip and cutout of {count} images of 3 x 32 x 32, median of {REPEATS}"
    return Row(what, sides, ["torchvision / ftkit >= 30"])
