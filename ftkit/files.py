"""Files and folders that are complete or missing, even after a crash; hashes of files; natural order of names."""

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
    """The hidden sibling of a file or folder, for writing it before a rename, or for deleting it after one."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; if the block ends without an error, that file becomes `path` in one step."""
    aside = hidden(path)
    try:
        yield aside
        sync(aside)
        rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def rename(aside: Path, path: Path) -> None:
    """Rename a file or folder that is already synced, and sync the new name."""
    os.replace(aside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """The XXH3 hash of a file's bytes, 128 bits in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def natural_sorted(names: Iterable[T]) -> list[T]:
    """Strings or paths in natural order (`1, 2, 10`); ties go by the text itself."""
    return sorted(names, key=lambda name: (_natural_key(str(name)), str(name)))


def _natural_key(text: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in re.split(r"(\d+)", text) if part]
