"""Experiment trackers (`report_to`): what they fail at is theirs, and never ends a run."""

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ftkit.compat.transformers import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from ftkit.errors import nearest

logger = logging.getLogger(__name__)
_EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


class Tracker(TrainerCallback):
    """Passes all that happens on to a tracker; where that fails, it is said once, and the tracker is left alone."""

    def __init__(self, tracker: TrainerCallback):
        self.tracker: TrainerCallback | None = tracker

    def _tell(self, event: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, event)(*args, **options)
        except Exception as error:  # whatever a service's client raises when the service is away
            name = type(self.tracker).__name__.removesuffix("Callback")
            logger.warning("report_to: %s failed, the run goes on without it: %s", name, error)
            self.tracker = None


def _passing_on(event: str) -> Callable[..., None]:
    def pass_on(self: Any, *args: Any, **options: Any) -> None:
        self._tell(event, args, options)

    return pass_on


for _event in _EVENTS:
    setattr(Tracker, _event, _passing_on(_event))


def shielded(callbacks: list[TrainerCallback], report_to: str | list[str] | None) -> list[TrainerCallback]:
    """The callbacks, with those of trackers behind a `Tracker` each."""
    trackers = tuple(get_reporting_integration_callbacks(report_to))
    return [Tracker(callback) if isinstance(callback, trackers) else callback for callback in callbacks]


def check_trackers(report_to: str | list[str] | None) -> list[str]:
    """All that is wrong with the names in `report_to`, a sentence each."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    known, errors = list(INTEGRATION_TO_CALLBACK), []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in known:
            errors.append(f"report_to: {name!r} is not one of {', '.join(known)}, all, none{nearest(name, known)}")
        elif name not in get_available_reporting_integrations():
            errors.append(f"report_to: {name} is not installed: install its package, or leave it out")
    return errors
