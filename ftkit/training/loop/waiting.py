"""The share of the training time that is spent waiting for data."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
_MUCH = 0.2  # share of the training time that is worth a warning
_LITTLE = 2.0  # seconds of waiting that are never worth a warning


class Waiting:
    """Counts the seconds that training waits for its batches.

    Attributes:
        seconds: time spent waiting.
        paused: seconds between the first step and the last that are not training, such as evaluations.
    """

    def __init__(self) -> None:
        self.seconds = self.paused = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time of the block as waiting."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Exclude the time of the block from training."""
        started = time.perf_counter()
        yield
        self.paused += time.perf_counter() - started

    def share(self, seconds: float, workers: int) -> float:
        """The share of the training time that was spent waiting; if it is large, a warning says how to reduce it.

        Args:
            seconds: time from the first step to the last.
            workers: number of processes that load data.
        """
        share = self.seconds / max(seconds - self.paused, self.seconds, 1e-9)
        if share > _MUCH and self.seconds > _LITTLE:
            logger.warning(
                "training waited for data for %.0f%% of its time: raise dataloader_num_workers (now %d), store "
                "smaller images, or decode them once with data_engine: tensor",
                100 * share,
                workers,
            )
        return share
