"""Mistakes of a user, as one clear message."""

import contextlib
import difflib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator

_TOLD_BY_THE_FIRST = 10.0  # seconds


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
        if isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0":
            time.sleep(
                _TOLD_BY_THE_FIRST
            )  # all processes have it: the launcher ends this one when the first has ended
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signum)


def nearest(name: str, valid: list[str] | tuple[str, ...], n: int = 3) -> str:
    """`" (did you mean 'a' or 'b'?)"` for the valid names that look like `name`, or an empty string."""
    close = difflib.get_close_matches(name, valid, n=n, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
