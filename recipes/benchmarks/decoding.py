"""Decoding alone, on all cores: the limit of every data path that begins with files."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from ftkit.data.pixels.decoding import cores
from ftkit.data.pixels.images import open_image

HELD: list[Any] = []  # in a process that decodes: the files, or their decoder


def decode(rows: range) -> None:
    """Decode these files, and nothing else."""
    for row in rows:
        open_image(HELD[row]).load()


def resize(rows: range) -> None:
    """Decode and resize these images as ftkit does."""
    HELD[0](rows)


def pool_of(held: list) -> Any:
    """A process for each core, forked, so that the files need not be sent to it."""
    return multiprocessing.get_context("fork").Pool(cores(), HELD.extend, (held,))


def over_all(pool: Any, work: Callable[[range], None], count: int, chunk: int = 128) -> None:
    """Apply `work` to all rows, in chunks."""
    pool.map(work, [range(start, min(start + chunk, count)) for start in range(0, count, chunk)], chunksize=1)
