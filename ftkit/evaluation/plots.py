"""Plots as SVG for a page. Text and axes take the page's colour, so they are readable in light and dark mode.

The colours are those of Okabe & Ito (2008), safe for colour-blind readers, that contrast with both white and black.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib import rcsetup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from ftkit.tasks import Drawing, Metric, shortened

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
_INK = "#010203"  # replaced by the page's own colour in the SVG
_WIDTH = 4.4  # inches: about the width of a phone's screen, so letters keep their size there
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the reader's fonts
    "svg.hashsalt": "ftkit",
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.figsize": (_WIDTH, _WIDTH),
    "axes.prop_cycle": rcsetup.cycler(color=[BLUE, VERMILION, GREEN, PURPLE]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}


@contextmanager
def _style(**changes: Any) -> Iterator[None]:
    with matplotlib.rc_context(_STYLE | changes), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw the text
        yield


def _svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element with a description for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL).replace(_INK, "currentColor")
    width = float(re.findall(r'width="([\d.]+)pt"', svg)[0])
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    label = escape(description)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width:{width:.0f}pt"', 1))


def svg(drawing: Drawing) -> Markup:
    """A task's figure as SVG, for a page."""
    with _style():
        return _svg(drawing.draw(), drawing.description)


def png(drawing: Drawing) -> bytes:
    """A task's figure as PNG, dark on white, for pages that take no SVG."""
    buffer = io.BytesIO()
    black = dict.fromkeys((key for key, value in _STYLE.items() if value == _INK), "black")
    with _style(**black, **{"figure.facecolor": "white"}):
        drawing.draw().savefig(buffer, format="png", dpi=160, bbox_inches="tight", metadata={})
    return buffer.getvalue()


def learning_curves(stages: list[dict[str, Any]], metric: Metric) -> Markup:
    """Loss, a validation metric and learning rate over the steps of all stages.

    Args:
        stages: for each stage its name, `stage`; the trainer's log, `history`; and the step of the chosen checkpoint,
            `best_step`, or None.
        metric: the metric to show beside the loss.
    """
    evaluated = f"eval_{metric.validation}"
    with _style():
        figure = Figure(figsize=(_WIDTH, 5))
        loss, score, rate = axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
        start, chosen = 0, False
        for number, stage in enumerate(stages):
            history, first = stage["history"], number == 0
            for axis, key, colour, label in (
                (loss, "loss", BLUE, "training"),
                (loss, "eval_loss", VERMILION, "validation"),
                (score, evaluated, VERMILION, None),
                (rate, "learning_rate", GREEN, None),
            ):
                points = [(start + log["step"], log[key]) for log in history if key in log]
                if points:
                    few = {"marker": "."} if len(points) < 30 else {}
                    axis.plot(*zip(*points, strict=True), color=colour, label=label if first else None, **few)
            best = next((log for log in history if log["step"] == stage["best_step"] and evaluated in log), None)
            if best is not None:
                for axis, key in ((loss, "eval_loss"), (score, evaluated)):
                    label = "chosen checkpoint" if axis is loss and not chosen else None
                    style = {"marker": "*", "markersize": 10, "linestyle": "", "color": PURPLE, "zorder": 3}
                    axis.plot(start + best["step"], best[key], label=label, **style)
                chosen = True
            if len(stages) > 1:
                loss.annotate(
                    f"{number}: {shortened(stage['stage'])}", (start, 1.02), xycoords=("data", "axes fraction"),
                    rotation=30 if len(stages) > 3 else 0, fontsize=8,
                )  # fmt: skip
            start += max((log["step"] for log in history), default=0)
            if number < len(stages) - 1:
                for axis in axes:
                    axis.axvline(start, color=_INK, linewidth=0.6, linestyle=":")
        loss.legend(fontsize=8)
        loss.set_ylabel("loss")
        score.set_ylabel(f"{metric.title} on validation")
        rate.set_ylabel("learning rate")
        rate.set_xlabel("step")
        figure.align_ylabels()
        figure.tight_layout()
        return _svg(figure, f"Learning curves: loss, {metric.title} on validation and learning rate over the steps")


def pareto(rows: list[dict[str, Any]], fronts: list[tuple[str, list[str]]], score: str, title: str) -> Markup:
    """A score (mean and standard deviation) against two costs; a line joins the rows of the Pareto front.

    Args:
        rows: rows of a comparison: `letter`, the score, `std`, `seconds`, `trained_parameters`.
        fronts: the name of each cost, and the letters on its front, cheapest first.
        score: the key of the score.
        title: the title of the score.
    """
    with _style():
        figure = Figure(figsize=(_WIDTH, 6))
        axes = figure.subplots(2, 1, sharey=True)
        for axis, (name, front), cost in zip(axes, fronts, ("seconds", "trained_parameters"), strict=True):
            by_letter = {row["letter"]: row for row in rows}
            line = [(by_letter[letter][cost], by_letter[letter][score]) for letter in front]
            axis.plot(*zip(*line, strict=True), color=GREEN, linewidth=1, zorder=1)
            for row in rows:
                colour = GREEN if row["letter"] in front else VERMILION
                marker = "o" if row["letter"] in front else "s"
                style = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 0.8, "zorder": 2}
                axis.errorbar(row[cost], row[score], row["std"] or 0, **style)
                axis.annotate(
                    row["letter"], (row[cost], row[score]), xytext=(5, 4), textcoords="offset points", fontsize=9
                )
            costs = [row[cost] for row in rows]
            if max(costs) > 10 * min(costs) > 0:
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(subs=(1,) if max(costs) > 300 * min(costs) else (1, 2, 5)))
                axis.xaxis.set_minor_locator(NullLocator())
            else:
                axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(lambda x, _: EngFormatter(sep="")(x) if x >= 1 else f"{x:g}")
            axis.set_xlabel(name)
            axis.set_ylabel(title)
        figure.tight_layout()
        return _svg(
            figure,
            f"{title.capitalize()} against seconds of training and against trained parameters, with Pareto fronts",
        )
