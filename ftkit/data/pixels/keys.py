"""The names of the cache's folders, made of all that shapes what lies in them, the versions of packages too."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import features

from ftkit.compat.datasets import fingerprint, set_fingerprint

DECODING = ("PIL", "numpy", "torch", "torchvision", "transformers", "timm")  # what makes pixels of a file
_CODECS = ("jpg", "webp", "avif", "jpg_2000")  # of Pillow, which may be of other versions under the same Pillow


def cache_key(*parts: Any, computed_by: Iterable[str]) -> str:
    """A name for what is computed from `parts` by these packages; other versions of them give another name."""
    versions: dict[str, str | None] = {name: str(importlib.import_module(name).__version__) for name in computed_by}
    if "PIL" in versions:
        versions |= {codec: features.version(codec) for codec in _CODECS if features.check(codec)}
    return Hasher.hash((parts, versions))


def file_state(path: str | Path) -> tuple[int, int, int]:
    """What of a file changes when it does: size and times; of the link itself where it leads nowhere.

    The time of the last change of its entry is among them: unlike the time of its contents no copy or archive sets it.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def follow_files(dataset: Dataset, paths: list[str | None]) -> None:
    """Let the fingerprint of a dataset follow the files behind it, so that a cache made of others is never taken.

    Args:
        dataset: whose own fingerprint follows what was done to it, and not always the files of its table.
        paths: the files that its rows name, or None for images inside the table.
    """
    tables = [file_state(file["filename"]) for file in dataset.cache_files]
    named = [path and file_state(path) for path in paths]
    set_fingerprint(dataset, Hasher.hash((fingerprint(dataset), tables, named)))
