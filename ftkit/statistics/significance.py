"""Significance: whether a difference in accuracy on the same test images is more than luck."""

from typing import Any

import numpy as np
import scipy  # loads scipy.stats, which is slow, only when it is used

ALPHA = 0.05


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The difference in accuracy from `first` to `second` on the same images, with its interval and p value.

    Two single runs: McNemar's exact test (1947) asks which of these two models is better; the interval is the adjusted
    Wald interval of Agresti & Min (2005). Several runs: the test asks which method is better, for other seeds and
    images. The variance of the difference is the sum of three parts, estimated separately: that of the images, and
    that of the seeds of either side. With few seeds the sum is uncertain, so the quantiles are Student's, with
    Satterthwaite's degrees of freedom (1946). A bootstrap over three seeds would find two thirds of their
    variance, and false winners.

    Args:
        first: bool (S, N), whether each of S runs is right on each of N images.
        second: bool (T, N), whether each of T other runs is right on each of the images.

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
    # One run does not show how its method varies: assume the variance of the other method.
    variances = [accuracies.var(ddof=1) for accuracies in sides if len(accuracies) > 1]
    for accuracies in sides:
        several = len(accuracies) > 1
        parts.append((accuracies.var(ddof=1) if several else variances[0]) / len(accuracies))
        freedom.append((len(accuracies) if several else max(map(len, sides))) - 1)
    variance = float(sum(parts))
    spread, p = 0.0, float(difference == 0)
    if variance != 0:
        degrees = variance**2 / sum(part**2 / free for part, free in zip(parts, freedom, strict=True))
        error = np.sqrt(variance)
        spread = scipy.stats.t.isf(ALPHA / 2, degrees) * error
        p = float(2 * scipy.stats.t.sf(abs(difference) / error, degrees))
    interval = [float(difference - spread), float(difference + spread)]
    return {"test": "images and seeds", "difference": difference, "interval": interval, "p": p}


def holm(p_values: list[float]) -> list[float]:
    """The p values, corrected for multiple comparisons (Holm 1979)."""
    order, corrected, greatest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = greatest
    return corrected
