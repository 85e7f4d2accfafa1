"""The figures of the report, drawn in matplotlib's current style: its colours, text colour and width."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from ftkit.tasks.parts import shortened

_NAMED_CLASSES, _COUNTED_CLASSES = 40, 12  # the most classes for which the matrix shows names, and counts


def confusion_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    """A confusion matrix int (C, C), with true classes as rows, coloured by the share of the true class."""
    classes = len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    width = matplotlib.rcParams["figure.figsize"][0]
    side = width if classes > _COUNTED_CLASSES else max(0.42 * classes, 2.2)
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


def reliability_diagram(bins: list[dict[str, Any]], tempered: list[dict[str, Any]] | None) -> Figure:
    """Accuracy against confidence, with 95% intervals, above the number of images in each bin.

    Args:
        bins: the bins of `ftkit.statistics.calibration.reliability`.
        tempered: the bins after temperature scaling, or None.
    """
    figure = Figure(figsize=(matplotlib.rcParams["figure.figsize"][0], 4.4))
    axis, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    ink = matplotlib.rcParams["text.color"]
    axis.plot([0, 1], [0, 1], color=ink, linewidth=0.8, linestyle=":", label="calibrated")
    sides = [(bins, "C0", "o", "without temperature")]
    if tempered:
        sides.append((tempered, "C1", "s", "with temperature"))
    for points, colour, marker, label in sides:
        x, y = ([b[key] for b in points] for key in ("confidence", "accuracy"))
        low, high = zip(*(b["interval"] for b in points), strict=True)
        # With few images, rounding may put a point just outside its own interval.
        spread = np.maximum([np.subtract(y, low), np.subtract(high, y)], 0)
        axis.errorbar(x, y, spread, color=colour, fmt=marker, markersize=4, elinewidth=0.8, label=label)
    axis.set_ylabel("accuracy")
    axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1, handletextpad=0.4)
    middles = [(b["low"] + b["high"]) / 2 for b in bins]
    counts.bar(middles, [b["n"] for b in bins], width=[0.9 * (b["high"] - b["low"]) for b in bins], color="C0")
    counts.set_yscale("log")
    counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    counts.set_ylabel("images")
    counts.set_xlabel("confidence: the probability of the predicted class")
    axis.set_xlim(0, 1.01)
    axis.set_ylim(0, 1.02)
    figure.align_ylabels()
    figure.tight_layout()
    return figure
