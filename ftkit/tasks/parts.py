"""The parts of a task: metrics, and figures and sections of the report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes half a second to load

Interval = list[float]  # low and high, 95%


@dataclass(frozen=True)
class Metric:
    """A row of a task's table of metrics, with everything that ftkit knows about the metric.

    Attributes:
        compute: function of the task's predictions.
        title: the name in reports.
        about: a few words of explanation.
        interval: function from the predictions to the 95% interval; None for a metric without one.
        hub_type: the Hub's name for the metric; None if it says nothing about the model, such as a baseline.
        validation: the name in the log and in `metric_for_best_model`, computed after every epoch; None: not computed.
        higher_is_better: whether the checkpoint with the greatest value is the best.
        least_classes: the fewest classes for which the metric is reported.
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
    """A figure, drawn in matplotlib's current style, with a description for screen readers."""

    name: str
    title: str
    draw: Callable[[], "Figure"]
    description: str


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        template: the name of its `.html` and `.md` in the task's `templates` folder.
        links: the links at the top of the page: anchor -> title.
        content: the variables of the templates.
        drawings: figures, which the templates get as SVG under their names.
    """

    template: str
    links: dict[str, str]
    content: dict[str, Any]
    drawings: tuple[Drawing, ...] = ()


def shortened(text: str) -> str:
    """`text` cut to 16 characters, and escaped so that matplotlib shows it literally."""
    return (text if len(text) <= 16 else text[:15] + "…").replace("$", r"\$")
