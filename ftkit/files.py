"""Files and folders that are complete or missing, also after a crash; their hashes, and the order of names."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import xxhash

_CHUNK = 1 << 20  # bytes
T = TypeVar("T")


def hidden(path: Path) -> Path:
    """Where the file or folder `path` is written, or deleted: a hidden neighbour of it."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path to write to; when the block ends without an error, that file becomes `path` in one step."""
    aside = hidden(path)
    try:
        yield aside
        sync(aside)
        rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def rename(aside: Path, path: Path) -> None:
    """Rename a file or folder whose content is on the disk, so that the new name is on the disk too."""
    os.replace(aside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """The XXH3 (128 bits, hexadecimal) of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def natural_sorted(names: Iterable[T]) -> list[T]:
    """Texts or paths, sorted so that numbers inside them count as numbers; ties by the text itself."""
    return sorted(names, key=lambda name: (_natural_key(str(name)), str(name)))


def _natural_key(text: str) -> list[tuple[int, int | str]]:
    """Under which `1, 2, 10` keep their order."""
    return [(0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in re.split(r"(\d+)", text) if part]
