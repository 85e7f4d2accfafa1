"""Signals to a run: save after the step, say how to resume, and exit."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftkit.errors import Interrupted

# Windows has only the first two. SIGHUP: the terminal is gone; SIGUSR1: SLURM's warning.
_STOP = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_SAVE = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []


class Signals:
    """Remembers signals: SIGTERM, SIGINT and SIGHUP save and end the run, SIGUSR1 saves and lets it continue.

    The process ends at once if there is nothing to save, and at a second signal.
    """

    def __init__(self) -> None:
        self._stop, self._save = 0, False
        self._training = False
        self._asked: tuple[Any, Any] | None = None  # the values of this process, and their pending reduction
        self._hosts: Any = None  # the processes as a gloo group, which needs no GPU

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Remember signals within the block, except those that `nohup` ignores; then restore the handlers."""
        stop = [signum for signum in _STOP if signal.getsignal(signum) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, self._remember) for signum in (*stop, *_SAVE)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, signals wait for the end of the step: training calls `agreed` after each."""
        self._training, self._asked = True, None
        try:
            yield
        finally:
            self._training = False

    def _remember(self, signum: int, frame: object) -> None:
        if signum in _SAVE:
            self._save = True
            return
        if signum not in (signal.SIGTERM, signal.SIGINT):
            _let_go_of_terminal()
        again, self._stop = self._stop, signum
        if again or not self._training:
            raise Interrupted(signum)

    def agreed(self) -> tuple[bool, int]:
        """Whether to save, and the signal to end by or 0: the same in all processes after the same step.

        The processes exchange this during the next step, so that none waits, and on the hosts, because a GPU would
        finish its queued work first.
        """
        import torch.distributed as dist  # late: a configuration error is reported without waiting for torch

        own, self._save = (self._save or bool(self._stop), self._stop), False
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return own
        import torch

        self._hosts = self._hosts or dist.new_group(backend="gloo")
        before, values = self._asked, torch.tensor([int(value) for value in own])
        self._asked = values, dist.all_reduce(values, dist.ReduceOp.MAX, group=self._hosts, async_op=True)
        if before is None:
            return False, 0
        before[1].wait()
        save, stop = before[0].tolist()
        return bool(save), stop


def _let_go_of_terminal() -> None:
    """Send output for the closed terminal to the null device; otherwise the next line would raise."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for shown in (1, 2):
        if stat.S_ISCHR(os.fstat(shown).st_mode):
            os.dup2(nowhere, shown)
    os.close(nowhere)


signals = Signals()
