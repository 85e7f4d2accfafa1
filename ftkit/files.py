"""Files and folders that are complete or missing, also after a crash, and their hashes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

_CHUNK = 1 << 20  # bytes


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
