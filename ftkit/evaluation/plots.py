"""Plots as SVG that stands in a page: its text and axes take the page's colour, so light and dark both read.

Colours are of Okabe & Ito (2008), told apart by colour-blind eyes; those that contrast with white and with black.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
_INK = "#010203"  # stands for the page's own colour until the SVG is written
_WIDTH = 4.4  # inches: a page on a phone is hardly narrower, so letters keep their size there
_NAMED_CLASSES, _COUNTED_CLASSES = 40, 12  # up to so many classes a matrix shows their names, and its counts
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the reader's fonts
    "svg.hashsalt": "ftkit",
    "font.family": "sans-serif",
    "font.size": 9,
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
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts will have it
        yield


def _svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element with a text for those who do not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL).replace(_INK, "currentColor")
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    label = escape(description)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width:{width:.0f}pt"', 1))


def shortened(text: str, length: int = 16) -> str:
    """`text`, cut to `length` characters, as matplotlib shows it literally."""
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def learning_curves(stages: list[dict[str, Any]]) -> Markup:
    """Loss, accuracy on validation and learning rate over the steps of all stages.

    Args:
        stages: for each its name, `stage`; `history`, the trainer's log; `best_step`, of the checkpoint that was
            chosen, or None.
    """
    with _style():
        figure = Figure(figsize=(_WIDTH, 5))
        loss, accuracy, rate = axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
        start, chosen = 0, False
        for number, stage in enumerate(stages):
            history, first = stage["history"], number == 0
            for axis, key, colour, label in (
                (loss, "loss", BLUE, "training"),
                (loss, "eval_loss", VERMILION, "validation"),
                (accuracy, "eval_accuracy", VERMILION, None),
                (rate, "learning_rate", GREEN, None),
            ):
                points = [(start + log["step"], log[key]) for log in history if key in log]
                if points:
                    few = {"marker": "."} if len(points) < 30 else {}
                    axis.plot(*zip(*points, strict=True), color=colour, label=label if first else None, **few)
            best = next((log for log in history if log["step"] == stage["best_step"] and "eval_accuracy" in log), None)
            if best is not None:
                for axis, key in ((loss, "eval_loss"), (accuracy, "eval_accuracy")):
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
        accuracy.set_ylabel("accuracy on validation")
        rate.set_ylabel("learning rate")
        rate.set_xlabel("step")
        figure.align_ylabels()
        figure.tight_layout()
        return _svg(figure, "Learning curves: loss, accuracy on validation and learning rate over the steps")


def confusion_matrix(matrix: np.ndarray, names: list[str]) -> Markup:
    """The matrix int (C, C), rows being true classes, as a picture."""
    hits = int(np.trace(matrix))
    text = f"Confusion matrix of {len(names)} classes: {hits:,} of {matrix.sum():,} images lie on its diagonal"
    with _style():
        return _svg(_confusion_figure(matrix, names), text)


def confusion_matrix_png(matrix: np.ndarray, names: list[str]) -> bytes:
    """The same as a PNG, dark on white, for pages that take no SVG."""
    buffer = io.BytesIO()
    black = dict.fromkeys((key for key, value in _STYLE.items() if value == _INK), "black")
    with _style(**black, **{"figure.facecolor": "white"}):
        _confusion_figure(matrix, names).savefig(buffer, format="png", dpi=160, bbox_inches="tight", metadata={})
    return buffer.getvalue()


def _confusion_figure(matrix: np.ndarray, names: list[str]) -> Figure:
    classes = len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = _WIDTH if classes > _COUNTED_CLASSES else max(0.42 * classes, 2.2)
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    colours, norm = matplotlib.colormaps["cividis"], PowerNorm(0.5, 0, 1)
    picture = axis.imshow(np.ma.masked_equal(shares, 0), colours, norm, interpolation="nearest")
    if classes <= _COUNTED_CLASSES:
        for i, j in np.argwhere(matrix):
            ink = "white" if norm(shares[i, j]) < 0.55 else "black"
            size = 8 if matrix.max() < 1000 else 6
            axis.text(j, i, matrix[i, j], ha="center", va="center", color=ink, fontsize=size)
    if classes <= _NAMED_CLASSES:
        labels = [shortened(name) for name in names]
        size = 9 if classes <= 20 else 6
        axis.set_xticks(range(classes), labels, rotation=90, fontsize=size)
        axis.set_yticks(range(classes), labels, fontsize=size)
    axis.set_xlabel("prediction")
    axis.set_ylabel("true class")
    bar = figure.colorbar(picture, fraction=0.046, pad=0.04, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_label("share of the true class")
    bar.ax.set_yticklabels(["0", "1%", "10%", "25%", "50%", "100%"], fontsize=7)
    bar.outline.set_visible(False)
    return figure


def reliability_diagram(bins: list[dict], tempered: list[dict] | None) -> Markup:
    """Accuracy against confidence, with 95% intervals, and how many images have which confidence.

    Args:
        bins: from `ftkit.statistics.calibration.reliability`.
        tempered: the same after dividing by the temperature, or None.
    """
    with _style():
        figure = Figure(figsize=(_WIDTH, 4.4))
        axis, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axis.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":", label="calibrated")
        sides = [(bins, BLUE, "o", "as it is")]
        if tempered:
            sides.append((tempered, VERMILION, "s", "with temperature"))
        for points, colour, marker, label in sides:
            x, y = ([b[key] for b in points] for key in ("confidence", "accuracy"))
            low, high = zip(*(b["interval"] for b in points), strict=True)
            # An interval of few images may leave its own point out by a hair's breadth of rounding.
            spread = np.maximum([np.subtract(y, low), np.subtract(high, y)], 0)
            axis.errorbar(x, y, spread, color=colour, fmt=marker, markersize=4, elinewidth=0.8, label=label)
        axis.set_ylabel("accuracy")
        axis.legend(
            fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1, handletextpad=0.4
        )
        middles = [(b["low"] + b["high"]) / 2 for b in bins]
        counts.bar(middles, [b["n"] for b in bins], width=0.9 / 15, color=BLUE)
        counts.set_yscale("log")
        counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        counts.set_ylabel("images")
        counts.set_xlabel("confidence: the probability of the predicted class")
        axis.set_xlim(0, 1.01)
        axis.set_ylim(0, 1.02)
        figure.align_ylabels()
        figure.tight_layout()
        return _svg(figure, "Reliability diagram: accuracy against confidence, and the number of images in each bin")


def pareto(rows: list[dict[str, Any]], fronts: list[tuple[str, list[str]]]) -> Markup:
    """Accuracy, mean and standard deviation, against two costs; what no other beats lies on a line.

    Args:
        rows: of a comparison: `letter`, `accuracy`, `std`, `seconds`, `trained_parameters`.
        fronts: the name of each of these two costs, and the letters on its front, cheapest first.
    """
    with _style():
        figure = Figure(figsize=(_WIDTH, 6))
        axes = figure.subplots(2, 1, sharey=True)
        for axis, (name, front), cost in zip(axes, fronts, ("seconds", "trained_parameters"), strict=True):
            by_letter = {row["letter"]: row for row in rows}
            line = [(by_letter[letter][cost], by_letter[letter]["accuracy"]) for letter in front]
            axis.plot(*zip(*line, strict=True), color=GREEN, linewidth=1, zorder=1)
            for row in rows:
                colour = GREEN if row["letter"] in front else VERMILION
                marker = "o" if row["letter"] in front else "s"
                style = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 0.8, "zorder": 2}
                axis.errorbar(row[cost], row["accuracy"], row["std"] or 0, **style)
                axis.annotate(
                    row["letter"], (row[cost], row["accuracy"]), xytext=(5, 4), textcoords="offset points", fontsize=9
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
            axis.set_ylabel("accuracy")
        figure.tight_layout()
        return _svg(figure, "Accuracy against seconds of training and against parameters trained, with Pareto fronts")
