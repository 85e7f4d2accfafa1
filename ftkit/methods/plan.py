"""A method is a plan: a list of stages, each of which says what trains."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One stage of training, with an optimizer and a schedule of its own.

    Attributes:
        name: how its folder and its lines in the log are called.
        train: what moves; `all` is every parameter.
        arguments: the training arguments that differ from the run's.
    """

    name: str
    train: str = "all"
    arguments: dict[str, Any] = field(default_factory=dict)


# `scratch` and `full` move the same parameters; they differ in the weights that they start from.
PLANS: dict[str, list[Stage]] = {"scratch": [Stage("all")], "full": [Stage("all")]}


def starts_from_trained_weights(method: str) -> bool:
    """Whether the plan fine-tunes: only `scratch` begins with random weights."""
    return method != "scratch"
