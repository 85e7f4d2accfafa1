"""How much of its time training waits for data."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
_MUCH = 0.2  # a share of the time of training
_LITTLE = 2.0  # seconds, of which no share is much


class Waiting:
    """Counts the seconds that training waits for its batches.

    Attributes:
        seconds: of waiting.
        paused: seconds between the first step and the last that are no training, such as evaluations.
    """

    def __init__(self) -> None:
        self.seconds = self.paused = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within, time counts as waiting."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Within, time does not count as training."""
        started = time.perf_counter()
        yield
        self.paused += time.perf_counter() - started

    def share(self, seconds: float, workers: int) -> float:
        """The share of the time of training that went by waiting; where it is much, a warning says what helps.

        Args:
            seconds: from the first step to the last.
            workers: processes that load data.
        """
        share = self.seconds / max(seconds - self.paused, self.seconds, 1e-9)
        if share > _MUCH and self.seconds > _LITTLE:
            logger.warning(
                "training waited for data for %.0f%% of its time: raise dataloader_num_workers (now %d), make the "
                "images smaller once and for all, or let them be decoded once: data_engine: tensor",
                100 * share,
                workers,
            )
        return share
