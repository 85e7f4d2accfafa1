"""Experiment trackers (`report_to`), whose failures never end a run."""

import logging
from typing import Any

from transformers import TrainerCallback

from ftkit.compat.transformers import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from ftkit.errors import Advice, nearest

logger = logging.getLogger(__name__)


class Tracker(TrainerCallback):
    """Forwards events to a tracker until its first error, which is logged."""

    def __init__(self, tracker: TrainerCallback):
        self.tracker: TrainerCallback | None = tracker

    def _pass_on(self, event: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, event)(*args, **options)
        except Exception as error:  # a client may raise anything if its service is down
            name = type(self.tracker).__name__.removesuffix("Callback")
            logger.warning("report_to: %s failed, the run continues without it: %s", name, error)
            self.tracker = None


for _event in (name for name in vars(TrainerCallback) if name.startswith("on_")):
    setattr(Tracker, _event, lambda self, *args, _event=_event, **options: self._pass_on(_event, args, options))


def shielded(callbacks: list[TrainerCallback], report_to: str | list[str] | None) -> list[TrainerCallback]:
    """The callbacks, with each tracker's wrapped in a `Tracker`."""
    trackers = tuple(get_reporting_integration_callbacks(report_to))
    return [Tracker(callback) if isinstance(callback, trackers) else callback for callback in callbacks]


def check_trackers(report_to: str | list[str] | None) -> list[str]:
    """Errors in the names of `report_to`, one sentence each."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    known, errors = list(INTEGRATION_TO_CALLBACK), list[str]()
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in known:
            errors.append(f"report_to: {name!r} is not one of {', '.join(known)}, all, none{nearest(name, known)}")
        elif name not in get_available_reporting_integrations():
            left: Any = [other for other in names if other != name] or None
            message = f"report_to: {name} is not installed: install its package, or leave it out"
            errors.append(Advice(message, {"report_to": left}))
    return errors
