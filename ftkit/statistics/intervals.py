"""Intervals: how far a number would move if other images of the same kind had been drawn."""

import numpy as np
import scipy  # which loads scipy.stats where it is used: it takes a while
from scipy import sparse

LEVEL = 0.95
_RESAMPLES = 1000
Interval = list[float]


def wilson(hits: int, n: int) -> Interval | None:
    """The 95% interval of a proportion (Wilson 1927); None where n is 0."""
    if n == 0:
        return None
    interval = scipy.stats.binomtest(int(hits), int(n)).proportion_ci(LEVEL, method="wilson")
    return [float(interval.low), float(interval.high)]


def f1_interval(hits: int, misses: int) -> Interval | None:
    """The 95% interval of an F1 score with `hits` true positives and `misses` false positives and false negatives.

    F1 is 2J / (1 + J), where J, the share of hits among the images that have this class as label or as prediction, is
    a proportion: its Wilson interval is carried over.
    """
    interval = wilson(hits, hits + misses)
    return interval and [2 * j / (1 + j) for j in interval]


def mean_interval(values: np.ndarray) -> Interval:
    """The 95% interval of the mean of values float (N,), by the percentile bootstrap over images."""
    if len(values) < 2:
        return [float(values.mean())] * 2
    done = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, batch=50, confidence_level=LEVEL, method="percentile", rng=0
    )
    return [float(done.confidence_interval.low), float(done.confidence_interval.high)]


def macro_f1_interval(matrix: np.ndarray) -> Interval:
    """The 95% interval of macro F1 from a confusion matrix int (C, C), by the percentile bootstrap over images.

    To draw N images anew is to draw the counts of the matrix's cells from a multinomial distribution.
    """
    rows, columns = np.nonzero(matrix)
    n, cells = matrix.sum(), np.arange(len(rows))
    counts = np.random.default_rng(0).multinomial(n, matrix[rows, columns] / n, size=_RESAMPLES).T

    def total(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """(C, resamples): the images of each class, by `classes`, in the chosen cells."""
        sums = sparse.csr_array((chosen.astype(float), (classes, cells)), shape=(len(matrix), len(cells)))
        return sums @ counts

    hits, every = total(rows, rows == columns), np.ones(len(rows), bool)
    seen = total(rows, every) + total(columns, every)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmean(np.where(seen > 0, 2 * hits / seen, np.nan), axis=0)
    return np.quantile(f1, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
