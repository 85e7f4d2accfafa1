"""User errors: one clear message instead of a traceback."""

import contextlib
import difflib
import errno
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError

from ftkit.compat.python import run_exit_functions

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_WAIT_FOR_FIRST = 10.0  # seconds
# How libraries report a lack of memory: only Python's own error has a type, and a data loader's process passes its
# error on as text.
_SHORT = re.compile(
    r"out of memory|can't allocate memory|not enough memory: you tried|CUBLAS_STATUS_ALLOC_FAILED|MemoryError"
    r"|(unable|failed) to allocate|worker .*is killed by signal: (Killed|Bus error)|shared memory \(shm\)",
    re.IGNORECASE,
)
_PEER = re.compile(r"Connection (closed|reset) by peer|remote process exited")  # gloo and NCCL
_ASKED = re.compile(r"(?:tried to allocate|Unable to allocate) (\d[\d.]*) ?([kKMGTPE]?i?[Bb]\w*)", re.IGNORECASE)
_LESS = (
    "lower per_device_train_batch_size (a larger gradient_accumulation_steps makes up for it), "
    "per_device_eval_batch_size, batch_size or image_size, or take a smaller model"
)


class Advice(str):
    """An error of the configuration that recommends settings.

    Attributes:
        fix: the settings by key, as in a recipe, with which the same command would run; None leaves a key out.
    """

    fix: dict[str, Any]

    def __new__(cls, message: str, fix: dict[str, Any]) -> Self:
        """A text that carries its `fix`."""
        self = super().__new__(cls, message)
        self.fix = fix
        return self


class UserError(Exception):
    """A mistake in the input; the message names the value, what was expected and the fix.

    Attributes:
        fix: the settings that the message recommends, by key, as in a recipe; None leaves a key out. Empty if the
            message recommends something else.
    """

    def __init__(self, message: str, fix: dict[str, Any] | None = None):
        self.fix = dict(fix or {})
        # An error from a DataLoader worker has its traceback as the message: keep only the original message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].rstrip("\n"))


class Interrupted(Exception):
    """A signal ended the run; its folder holds what is needed to resume.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"ended by {signal.Signals(signum).name}; the same command resumes from what is saved")


class ConfigError(UserError):
    """All errors of a configuration at once."""

    def __init__(self, errors: list[str]):
        self.errors = errors
        fix = {key: value for error in errors if isinstance(error, Advice) for key, value in error.fix.items()}
        count = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {error}" for error in errors), fix)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Print errors of the user as one message on standard error, and exit.

    A `UserError`, a full disk, a denied permission and a lack of memory exit with code 2, `Interrupted` with 128 + its
    signal, as in shells. `FTKIT_DEBUG=1` in the environment prints the traceback too.
    """
    try:
        yield
        _end(0)
    except Interrupted as error:
        if _is_first():
            _tell(str(error))
        _end(128 + error.signum)
    except Exception as error:
        if not _is_first():  # all ranks share most errors: rank 0 prints it and exits, and the launcher ends this one
            time.sleep(_WAIT_FOR_FIRST)
        if (message := _as_message(error)) is None:
            raise
        if os.environ.get("FTKIT_DEBUG"):
            traceback.print_exc()
        _tell(printable(message, but="\n"))
        _end(2)


def _as_message(error: Exception) -> str | None:
    """The message about an error of the user or of the machine; None for any other, whose traceback is needed."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if (short := short_of_memory(error)) is not None:
        return f"error: {short}: {_LESS}"
    if (reason := _disk_trouble(error)) is not None:
        return f"error: {_place(error) or 'a file'}: {reason}"
    if isinstance(error, RuntimeError) and _PEER.search(str(error)):
        return "another process of this run has ended, so this one ends too"
    return None


def _end(code: int) -> None:
    """Exit if this process failed or is one of several.

    One of several skips the interpreter's shutdown: a gloo thread that still holds a Python tensor would need the
    interpreter to release it, and abort.
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
    """Print the message, and store it for the launcher, whose final summary says why a process failed."""
    print(f"\n{message}", file=sys.stderr, flush=True)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        failure = {"message": message, "extraInfo": {"timestamp": int(time.time())}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": failure}), encoding="utf-8")


@contextlib.contextmanager
def writing(key: str, folder: Path | str) -> Iterator[None]:
    """Turn errors of a full or read-only disk into one `UserError`.

    Args:
        key: the option or environment variable that names the folder.
        folder: the folder being written, for errors that name no file.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (message := unwritable(error, key, folder)) is None:
            raise
        raise message from error


def unwritable(error: BaseException, key: str, folder: Path | str) -> UserError | None:
    """The `UserError` that `writing` raises for an error; None if the disk is neither full nor read-only."""
    if (reason := _disk_trouble(error)) is None:
        return None
    place = _place(error) or folder
    return UserError(
        f"{key}: {place} cannot be written: {reason}, and the same command resumes from what is saved; or give "
        f"another {key}"
    )


def _place(error: BaseException) -> str | None:
    """The file that an error names; of a copy, the destination."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)


def _disk_trouble(error: BaseException) -> str | None:
    """Why a file cannot be read or written, and the fix; None if the reason is neither space nor permission."""
    number = getattr(error, "errno", None)
    # These libraries give the reason only in their text.
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    elif isinstance(error, OSError) and re.search(r"requested and \d+ written|Not enough disk space", str(error)):
        number = errno.ENOSPC  # numpy and datasets
    if number in _FULL:
        return f"{os.strerror(number)}: make room there"
    return f"{os.strerror(number)}: allow access" if number in _REFUSED else None


def short_of_memory(error: BaseException) -> str | None:
    """What could not be allocated, if an error of Python, numpy, torch or the system says that memory is too small."""
    text = str(error)
    known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if not known and not (isinstance(error, RuntimeError) and _SHORT.search(text)):
        return None
    if "is killed by signal" in text:
        return "not enough memory: the system ended a process that loads images"
    found = _ASKED.search(text)
    if found is None:
        return "not enough memory"
    number, unit = found.groups()
    asked = f"{int(number) / 1e9:.1f} GB" if unit == "bytes" else f"{number} {unit}"
    return f"not enough memory: {asked} could not be allocated"


def printable(text: str, but: str = "") -> str:
    """The text with unprintable characters, which a terminal may obey, escaped, except those in `but`.

    Tokens of the Hub are left out, since logs are shared.
    """
    text = without_tokens(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text)


def without_tokens(text: str) -> str:
    """The text without tokens of the Hub."""
    return _TOKEN.sub("hf_…", text)


def as_options(settings: dict[str, Any]) -> str:
    """Settings as on a command line, quoted for a shell: `--train_split 'Training Set'`. Long lists are cut."""
    given = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    return " ".join(
        f"--{key} {shlex.join(map(str, values[:5]))}{' …' * (len(values) > 5)}" for key, values in given.items()
    )


def listed(names: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """The first `most` names, and the number of the others: `"a, b and 3 more"`, or `"a; b; and 3 more"`."""
    names = list(names)
    more = f"{' ' if between == ', ' else between}and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def nearest(name: str, valid: Iterable[str]) -> str:
    """`" (did you mean 'a' or 'b'?)"` for up to three valid names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, valid)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
