"""Confidence intervals: how far a number would move with other images of the same kind."""

import numpy as np
import scipy  # loads scipy.stats, which is slow, only when it is used
from scipy import sparse

LEVEL = 0.95
_RESAMPLES = 1000
Interval = list[float]


def wilson(hits: int, n: int) -> Interval | None:
    """The 95% interval of a proportion (Wilson 1927); None if n is 0."""
    if n == 0:
        return None
    interval = scipy.stats.binomtest(int(hits), int(n)).proportion_ci(LEVEL, method="wilson")
    return [float(interval.low), float(interval.high)]


def f1_interval(hits: int, misses: int) -> Interval | None:
    """The 95% interval of an F1 score, from `hits` true positives and `misses` false positives and false negatives.

    F1 is 2J / (1 + J), where J is a proportion: the share of hits among the images with this class as label or
    prediction. The interval is that of J (Wilson), transformed.
    """
    interval = wilson(hits, hits + misses)
    return interval and [2 * j / (1 + j) for j in interval]


def mean_interval(values: np.ndarray) -> Interval:
    """The 95% interval of the mean of float (N,), by the percentile bootstrap over images."""
    if len(values) < 2:
        return [float(values.mean())] * 2
    done = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, batch=50, confidence_level=LEVEL, method="percentile", rng=0
    )
    return [float(done.confidence_interval.low), float(done.confidence_interval.high)]


def macro_f1_interval(matrix: np.ndarray) -> Interval:
    """The 95% interval of macro F1 from a confusion matrix int (C, C), by the percentile bootstrap over images.

    Resampling N images is the same as drawing the cells' counts from a multinomial distribution.
    """
    rows, columns = np.nonzero(matrix)
    n, cells = matrix.sum(), np.arange(len(rows))
    counts = np.random.default_rng(0).multinomial(n, matrix[rows, columns] / n, size=_RESAMPLES).T

    def total(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """(C, resamples): the images in the chosen cells, summed by class."""
        sums = sparse.csr_array((chosen.astype(float), (classes, cells)), shape=(len(matrix), len(cells)))
        return sums @ counts

    hits, every = total(rows, rows == columns), np.ones(len(rows), bool)
    seen = total(rows, every) + total(columns, every)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmean(np.where(seen > 0, 2 * hits / seen, np.nan), axis=0)
    return np.quantile(f1, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
