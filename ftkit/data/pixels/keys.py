"""Cache keys: hashes of everything that shapes the cached content, including package versions."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import features

from ftkit.compat.datasets import fingerprint, set_fingerprint
from ftkit.data.pixels.plugins import register_plugins

DECODING = ("PIL", "numpy", "torch", "torchvision", "transformers", "timm")  # packages that turn files into pixels
_CODECS = ("jpg", "webp", "avif", "jpg_2000")  # Pillow's codecs, whose versions do not follow from Pillow's


def cache_key(*parts: Any, computed_by: Iterable[str]) -> str:
    """A key for data computed from `parts` by these packages; it changes with their versions."""
    versions: dict[str, str | None] = {name: str(importlib.import_module(name).__version__) for name in computed_by}
    if "PIL" in versions:
        versions |= {codec: features.version(codec) for codec in _CODECS if features.check(codec)} | register_plugins()
    return Hasher.hash((parts, versions))


def file_state(path: str | Path) -> tuple[int, int, int]:
    """Size and times of a file, or of the link itself if it is broken; they change when the file does.

    One of the times is the last inode change: unlike the modification time, no copy or archive sets it.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def follow_files(dataset: Dataset, paths: list[str | None]) -> None:
    """Make a dataset's fingerprint follow the files behind it, so that a cache of older files is never used.

    Args:
        dataset: a dataset, whose own fingerprint covers its transformations, but not always the files of its table.
        paths: the files that the rows name, or None for images inside the table.
    """
    tables = [file_state(file["filename"]) for file in dataset.cache_files]
    named = [path and file_state(path) for path in paths]
    set_fingerprint(dataset, Hasher.hash((fingerprint(dataset), tables, named)))
