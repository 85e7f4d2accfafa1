"""What a run does when it is told to end: save after the step, say how to go on, and leave."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftkit.errors import Interrupted

_STOP = (signal.SIGTERM, signal.SIGINT)
_SAVE = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()  # SLURM's warning; Windows has none


class Signals:
    """Remembers what this process was told: SIGTERM and SIGINT to save and end, SIGUSR1 to save and go on.

    Where nothing is there to be saved, and when it is told a second time, the process ends at once.
    """

    def __init__(self) -> None:
        self._stop, self._save = 0, False
        self._training = False
        self._asked: tuple[Any, Any] | None = None  # what the processes were told, and the work of telling each other

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within, signals are remembered; after it, they do what they did before."""
        before = {signum: signal.signal(signum, self._remember) for signum in (*_STOP, *_SAVE)}
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
        again, self._stop = self._stop, signum
        if again or not self._training:
            raise Interrupted(signum)

    def agreed(self) -> tuple[bool, int]:
        """Whether to save, and the signal to end by or 0: the same in all processes after the same step.

        What a process was told goes around while the next step runs, so that nobody waits for it.
        """
        import torch.distributed as dist  # late: a mistake in the configuration is answered before

        told, self._save = (self._save or bool(self._stop), self._stop), False
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return told
        import torch

        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        before, values = self._asked, torch.tensor([int(value) for value in told], device=device)
        self._asked = values, dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)
        if before is None:
            return False, 0
        before[1].wait()
        save, stop = before[0].tolist()
        return bool(save), stop


signals = Signals()
