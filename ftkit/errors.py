"""Mistakes of a user, as one clear message."""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake in the input: its message names the value, what was expected and the fix."""


class Interrupted(Exception):
    """The run was told to end. What is needed to go on lies in its folder.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"ended by {signal.Signals(signum).name}; the same command goes on from what is saved")


class ConfigError(UserError):
    """Every error of a configuration, listed at once."""

    def __init__(self, errors: list[str]):
        self.errors = errors
        count = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {error}" for error in errors))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `UserError` into one message on standard error and exit code 2; an `Interrupted` into one, and 128 + its
    signal, as shells count.

    With `FTKIT_DEBUG=1` in the environment the traceback is shown as well.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("FTKIT_DEBUG"):
            traceback.print_exc()
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signum)


@contextlib.contextmanager
def writing(key: str, folder: Path | str) -> Iterator[None]:
    """Turn what a disk that is full or read-only raises within into one message.

    Args:
        key: what names the folder: an option, or a variable of the environment.
        folder: what is written to, for errors that do not say it themselves.

    Raises:
        UserError: the disk is full, or may not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (message := unwritable(error, key, folder)) is None:
            raise
        raise message from error


def unwritable(error: BaseException, key: str, folder: Path | str) -> UserError | None:
    """What `writing` says of an error; None of one that has another cause than a disk that is full or read-only."""
    number = _error_number(error)
    if number not in (*_FULL, *_REFUSED):
        return None
    place = getattr(error, "filename", None) or folder
    fix = "make room there" if number in _FULL else "make it writable"
    return UserError(
        f"{key}: {place} cannot be written: {os.strerror(number)}: {fix}, and the same command goes on from what "
        f"is saved; or give another {key}"
    )


def _error_number(error: BaseException) -> int | None:
    """The system's number of an error; safetensors, numpy and datasets raise some in their own words."""
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    full = isinstance(error, OSError) and re.search(r"requested and \d+ written|Not enough disk space", str(error))
    return errno.ENOSPC if full else getattr(error, "errno", None)


def nearest(name: str, valid: list[str] | tuple[str, ...], n: int = 3) -> str:
    """`" (did you mean 'a' or 'b'?)"` for the valid names that look like `name`, or an empty string."""
    close = difflib.get_close_matches(name, valid, n=n, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
