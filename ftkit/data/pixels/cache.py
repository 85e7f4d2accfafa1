"""What was computed before, kept in folders that are complete or do not exist."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets.config
from filelock import FileLock, Timeout

from ftkit.errors import UserError, writing

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`ftkit/` beside the caches of the other Hugging Face libraries (`HF_HOME`)."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "ftkit"


def cached(
    key: str,
    write: Callable[[Path], None],
    cache_dir: str | None = None,
    complete: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """The folder `key` of the cache. Where it is missing, `write` fills one aside, which then gets the name.

    All processes may ask at once: the first one makes it, and the others wait for a lock on a file, as long as it
    takes, where a collective of `torch.distributed` would give up after `ddp_timeout`.

    Args:
        key: names the folder.
        write: fills an empty folder.
        cache_dir: where the folders lie; `default_cache_dir` where it is None.
        complete: whether a folder holds all that was written; one that does not, or cannot be read, is made again.

    Raises:
        UserError: a full disk, or a folder that cannot be written.
    """
    root = Path(cache_dir) if cache_dir else default_cache_dir()
    folder = root / key
    if folder.is_dir() and _is_complete(folder, complete):
        return folder
    try:
        with writing("cache_dir", root):
            root.mkdir(parents=True, exist_ok=True)
            with _alone(root / f".{key}.lock"):
                if folder.is_dir():
                    if _is_complete(folder, complete):  # another process has made it
                        return folder
                    logger.warning("cache_dir: %s is damaged, and is made again", folder)
                    shutil.rmtree(folder)
                _make(folder, write)
    except OSError as error:
        raise UserError(f"cache_dir: {root} cannot be written: {error}: give another folder") from error
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("  waiting for another process, which makes the same in %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # who waits for it sees first whether anything is left to do
        lock.release()


def _make(folder: Path, write: Callable[[Path], None]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(aside)
        try:
            os.replace(aside, folder)
        except OSError:
            if not folder.is_dir():  # otherwise a machine that does not see the lock was first, with the same bytes
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_complete(folder: Path, complete: Callable[[Path], bool]) -> bool:
    try:
        return complete(folder)
    except (OSError, ValueError, KeyError):
        return False
