"""What a task is made of: metrics, and its part of the report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes half a second to load

Interval = list[float]  # low and high, 95%


@dataclass(frozen=True)
class Metric:
    """A row of a task's table of metrics. All that is said about the metric anywhere stands here.

    Attributes:
        compute: from a task's predictions.
        title: in reports.
        about: a few words of explanation.
        interval: the 95% interval, from the predictions; None for a metric without one.
        hub_type: the Hub's name of the metric; None for one that says nothing about the model, such as a baseline.
        validation: the name under which it is logged on validation and may choose the checkpoint; None if it may not.
        higher_is_better: whether the checkpoint with the greatest value is the best.
        least_classes: with fewer classes it says little and is left out.
    """

    compute: Callable[[Any], float]
    title: str
    about: str
    interval: Callable[[Any], Interval | None] | None = None
    hub_type: str | None = None
    validation: str | None = None
    higher_is_better: bool = True
    least_classes: int = 0


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn in the current style of matplotlib, and a description for those who cannot see it."""

    name: str
    title: str
    draw: Callable[[], "Figure"]
    description: str


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        template: of its `.html` and `.md`, a name in the task's folder of templates.
        links: from the top of the page, title by anchor.
        content: for the templates.
        drawings: likewise; they arrive there as SVG, by name.
    """

    template: str
    links: dict[str, str]
    content: dict[str, Any]
    drawings: tuple[Drawing, ...] = ()


def shortened(text: str, length: int = 16) -> str:
    """`text`, cut to `length` characters, as matplotlib shows it literally."""
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
