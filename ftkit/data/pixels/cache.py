"""A cache of computed data, in folders that are complete or missing."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets.config
from filelock import FileLock, Timeout

from ftkit.errors import UserError, as_options, short_of_memory, writing

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`ftkit/` next to the caches of the other Hugging Face libraries (`HF_HOME`)."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "ftkit"


def cache_root(cache_dir: str | None) -> Path:
    """The folder of the cache: `cache_dir`, or else `default_cache_dir`."""
    return Path(cache_dir) if cache_dir else default_cache_dir()


def free_bytes(folder: Path) -> int:
    """The bytes that are free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def check_room(folder: Path, size: int, what: str, without: dict[str, Any]) -> None:
    """Refuse to write more into a folder of the cache than its disk can hold.

    Args:
        what: what is written.
        without: the settings that do without the cache.

    Raises:
        UserError: `size` bytes are more than are free.
    """
    if size > (free := free_bytes(folder)):
        raise UserError(
            f"cache_dir: the {what} need {size / 1e6:,.1f} MB in {folder.parent}, and {free / 1e6:,.1f} MB are free "
            f"on its disk: make room there, give another cache_dir, or set {as_options(without)}",
            fix=without,
        )


def cached(
    key: str,
    write: Callable[[Path], None],
    cache_dir: str | None = None,
    complete: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """The folder `key` of the cache. If it is missing, `write` fills a temporary folder, which is then renamed.

    All processes may call this at once: the first builds the folder, the others wait for a file lock, for as long as
    it takes. A `torch.distributed` collective would give up after `ddp_timeout`.

    Args:
        key: the folder's name.
        write: function that fills an empty folder.
        cache_dir: the root; `default_cache_dir` if None.
        complete: function that returns whether a folder is complete; an incomplete or unreadable one is rebuilt.

    Raises:
        UserError: the disk is full or not writable.
    """
    root = cache_root(cache_dir)
    folder = root / key
    if folder.is_dir() and _is_complete(folder, complete):
        return folder
    try:
        with writing("cache_dir", root):
            root.mkdir(parents=True, exist_ok=True)
            with _alone(root / f".{key}.lock"):
                if folder.is_dir():
                    if _is_complete(folder, complete):  # another process has built it
                        return folder
                    logger.warning("cache_dir: %s is damaged and is rebuilt", folder)
                    shutil.rmtree(folder)
                _make(folder, write)
    except OSError as error:
        if short_of_memory(error) is not None:
            raise
        raise UserError(f"cache_dir: {root} cannot be written: {error}: set another cache_dir") from error
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("  waiting for another process, which builds the same cache in %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # harmless: a process that waited checks for the folder first
        lock.release()


def _make(folder: Path, write: Callable[[Path], None]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(aside)
        try:
            os.replace(aside, folder)
        except OSError:
            if not folder.is_dir():  # else another machine, which does not share the lock, wrote the same bytes first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_complete(folder: Path, complete: Callable[[Path], bool]) -> bool:
    try:
        return complete(folder)
    except (OSError, ValueError, KeyError):
        return False
