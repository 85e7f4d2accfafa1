"""Whether a difference in accuracy on the same test images is more than luck."""

from typing import Any

import numpy as np
import scipy  # which loads scipy.stats where it is used: it takes a while

ALPHA = 0.05


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The accuracy of the second against that of the first, on the same images.

    Two single runs are compared by McNemar's exact test (1947): is one of these two models better? Its interval is
    the adjusted Wald interval of Agresti & Min (2005). Several runs of a method are compared over seeds and images:
    is the method better, for other seeds and other images? The variance of the difference has three parts, which are
    estimated apart: of the images, and of the seeds of either side. With few seeds their sum is known badly, so its
    degrees of freedom are Satterthwaite's (1946), and the quantiles Student's. A bootstrap over three seeds takes
    their spread for two thirds of what it is, and finds winners where there are none.

    Args:
        first: bool (S, N), whether each of S runs is right on each of N images.
        second: bool (T, N), likewise.

    Returns:
        `test`, `difference`, its 95% `interval`, and `p`.
    """
    if len(first) == len(second) == 1:
        return _mcnemar(first[0], second[0])
    return _crossed(first, second)


def _mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    n, won, lost = len(first), int((second & ~first).sum()), int((first & ~second).sum())
    p = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    total, up, down = n + 2, won + 0.5, lost + 0.5
    centre = (up - down) / total
    spread = scipy.stats.norm.isf(ALPHA / 2) * np.sqrt(up + down - (up - down) ** 2 / total) / total
    return {
        "test": "McNemar",
        "difference": (won - lost) / n,
        "interval": [float(centre - spread), float(centre + spread)],
        "p": float(p),
    }


def _crossed(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    by_image = second.mean(axis=0) - first.mean(axis=0)
    difference, n = float(by_image.mean()), len(by_image)
    parts, freedom = [by_image.var(ddof=1) / n], [n - 1]
    sides = [side.mean(axis=1) for side in (first, second)]
    # One run does not show how its method varies: it is taken to vary as the other does.
    variances = [accuracies.var(ddof=1) for accuracies in sides if len(accuracies) > 1]
    for accuracies in sides:
        several = len(accuracies) > 1
        parts.append((accuracies.var(ddof=1) if several else variances[0]) / len(accuracies))
        freedom.append(max(map(len, sides)) - 1 if not several else len(accuracies) - 1)
    variance = float(sum(parts))
    if variance == 0:
        return {"test": "images and seeds", "difference": difference, "interval": [difference] * 2,
                "p": float(difference == 0)}  # fmt: skip
    degrees = variance**2 / sum(part**2 / free for part, free in zip(parts, freedom, strict=True))
    error = np.sqrt(variance)
    spread = scipy.stats.t.isf(ALPHA / 2, degrees) * error
    return {
        "test": "images and seeds",
        "difference": difference,
        "interval": [float(difference - spread), float(difference + spread)],
        "p": float(2 * scipy.stats.t.sf(abs(difference) / error, degrees)),
    }


def holm(p_values: list[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979)."""
    order, corrected, greatest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = greatest
    return corrected
