"""What a run does when it is told to end: save after the step, say how to go on, and leave."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftkit.errors import Interrupted

# Windows has but the first two. SIGHUP: the terminal is gone; SIGUSR1: SLURM's warning.
_STOP = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_SAVE = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []


class Signals:
    """Remembers what this process was told: SIGTERM, SIGINT and SIGHUP to save and end, SIGUSR1 to save and go on.

    Where nothing is there to be saved, and when it is told a second time, the process ends at once.
    """

    def __init__(self) -> None:
        self._stop, self._save = 0, False
        self._training = False
        self._asked: tuple[Any, Any] | None = None  # what the processes were told, and the work of telling each other
        self._hosts: Any = None  # the processes, as a group that speaks without their GPUs

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within, signals are remembered, but for those that `nohup` ignores; after it, they do what they did."""
        stop = [signum for signum in _STOP if signal.getsignal(signum) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, self._remember) for signum in (*stop, *_SAVE)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Within, whoever trains asks after every step."""
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

        What a process was told goes around while the next step runs, so that nobody waits for it; and it goes from
        host to host, since what is asked of a GPU comes after all that the GPU has to do.
        """
        import torch.distributed as dist  # late: a mistake in the configuration is answered before

        told, self._save = (self._save or bool(self._stop), self._stop), False
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return told
        import torch

        self._hosts = self._hosts or dist.new_group(backend="gloo")
        before, values = self._asked, torch.tensor([int(value) for value in told])
        self._asked = values, dist.all_reduce(values, dist.ReduceOp.MAX, group=self._hosts, async_op=True)
        if before is None:
            return False, 0
        before[1].wait()
        save, stop = before[0].tolist()
        return bool(save), stop


def _let_go_of_terminal() -> None:
    """Write to it no more: it is gone, and the first line would be the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for shown in (1, 2):
        if stat.S_ISCHR(os.fstat(shown).st_mode):
            os.dup2(nowhere, shown)
    os.close(nowhere)


signals = Signals()
