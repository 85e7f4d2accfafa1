"""Mistakes of a user, as one clear message."""

import contextlib
import difflib
import errno
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from ftkit.compat.python import run_exit_functions

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_TOLD_BY_THE_FIRST = 10.0  # seconds


class UserError(Exception):
    """A mistake in the input: its message names the value, what was expected and the fix."""

    def __init__(self, message: str):
        # A worker of a data loader passes an error on with its traceback for a message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].rstrip("\n"))


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
    """Turn a `UserError`, a full disk and a denied permission into one message on standard error and exit code 2; an
    `Interrupted` into one, and 128 + its signal, as shells count.

    With `FTKIT_DEBUG=1` in the environment the traceback is shown as well.
    """
    try:
        yield
        _end(0)
    except (UserError, OSError, SafetensorError) as error:
        message = str(error)
        if not isinstance(error, UserError):
            if (reason := _disk_trouble(error)) is None:
                raise
            message = f"{_place(error) or 'a file'}: {reason}"
        if os.environ.get("FTKIT_DEBUG"):
            traceback.print_exc()
        if not _is_first():  # what all have is told once: the launcher ends this process when the first has ended
            time.sleep(_TOLD_BY_THE_FIRST)
        _tell("error: " + printable(message, but="\n"))
        _end(2)
    except Interrupted as error:
        if _is_first():
            _tell(str(error))
        _end(128 + error.signum)


def _end(code: int) -> None:
    """End this process, if it is one of several or has failed.

    Of several, one that leaves while a thread of gloo still holds a tensor of Python's would be aborted when that
    thread asks for the interpreter, which is gone: so the interpreter is not taken down.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        run_exit_functions()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell(message: str) -> None:
    """Print it; and a launcher of several processes, which says at its end why one failed, repeats it there."""
    print(f"\n{message}", file=sys.stderr, flush=True)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        failure = {"message": message, "extraInfo": {"timestamp": int(time.time())}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": failure}), encoding="utf-8")


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
    if (reason := _disk_trouble(error)) is None:
        return None
    place = _place(error) or folder
    return UserError(
        f"{key}: {place} cannot be written: {reason}, and the same command goes on from what is saved; or give "
        f"another {key}"
    )


def _place(error: BaseException) -> str | None:
    """The file that an error names; of a copy, the one that is written."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)


def _disk_trouble(error: BaseException) -> str | None:
    """Why a file cannot be written, or read, and what helps; None where it is neither room nor permission."""
    number = getattr(error, "errno", None)
    # These libraries say it in their own words.
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    elif isinstance(error, OSError) and re.search(r"requested and \d+ written|Not enough disk space", str(error)):
        number = errno.ENOSPC  # numpy and datasets
    if number in _FULL:
        return f"{os.strerror(number)}: make room there"
    return f"{os.strerror(number)}: allow it" if number in _REFUSED else None


def printable(text: str, but: str = "") -> str:
    """The text without anything that a terminal would obey, except for the characters in `but`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, valid: Iterable[str], n: int = 3) -> str:
    """`" (did you mean 'a' or 'b'?)"` for the valid names that look like `name`, or an empty string."""
    close = difflib.get_close_matches(name, valid, n=n, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
