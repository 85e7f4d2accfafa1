"""JPEG files to 224 pixels by the streaming engine, against decoding alone on all cores, and decoding and resizing."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.data import Bench, as_photos, make_setup, read_images
from benchmarks.decoding import decode, over_all, pool_of, resize
from benchmarks.sides import ftkit
from benchmarks.timing import Row, Side, clock
from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import image_tensors
from ftkit.data.pixels.decoding import Decoder, cores
from ftkit.data.pixels.images import encoded

PHOTOS = 1000


def row(bench: Bench) -> Row:
    """A pass of the loader by both engines, decoding alone, and decoding with resizing."""
    rows = read_images(bench, "cifar10")
    photos = as_photos(rows.select(range(min(PHOTOS, len(rows)))), bench.folder / "photos")
    count = len(photos)
    jobs: dict[str, Callable[[], Any]] = {}
    for name, engine in {"stream": StreamedImages, "tensor": image_tensors}.items():
        setup = make_setup(bench, "cifar10", 64, photos, engine, model="timm/resnet18", image_size=224)
        jobs[name] = partial(deque, ftkit(setup).get_train_dataloader(), 0)
    held = {"decoding": encoded(photos)[:]["image"], "resizing": [Decoder(photos, setup.processor, 3)]}
    for name, work in {"decoding": decode, "resizing": resize}.items():
        jobs[name] = partial(over_all, bench.stack.enter_context(pool_of(held[name])), work, count, 64)
    for job in jobs.values():
        job()  # starts the processes, which stay

    def timed(job: Callable[[], Any]) -> Side:
        return lambda number: clock(job, count)

    sides = {name: timed(job) for name, job in jobs.items()}
    what = f"{count:,} JPEG files of about 400 x 300 to 224 pixels, {cores()} processes: a pass of the loader"
    return Row(what, sides, ["stream / decoding <= 1.1", "stream / resizing <= 1.1"])
