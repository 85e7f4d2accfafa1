"""Calibration: whether predictions with confidence 0.8 are right 80% of the time; the temperature that fixes it."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ftkit.statistics.intervals import wilson

BINS = 15
_EDGES = np.arange(BINS + 1) / BINS
_LARGEST = 20.0  # bound of the search, from 1 / 20; a temperature at a bound is no minimum


def reliability(confidences: np.ndarray, hits: np.ndarray) -> list[dict]:
    """The non-empty bins of a reliability diagram (Guo et al. 2017).

    Args:
        confidences: float (N,), the probability of the predicted class.
        hits: bool (N,), whether the prediction is right.

    Returns:
        `low`, `high`, `n`, the mean `confidence`, and `accuracy` with its 95% `interval`, for each non-empty one of 15
        bins of equal width.
    """
    bins = np.searchsorted(_EDGES[1:-1], confidences)  # (0, 1/15], (1/15, 2/15], …, by the stored edges
    found = []
    for number in np.unique(bins):
        inside = bins == number
        n, right = int(inside.sum()), int(hits[inside].sum())
        found.append(
            {
                "low": float(_EDGES[number]),
                "high": float(_EDGES[number + 1]),
                "n": n,
                "confidence": float(confidences[inside].mean()),
                "accuracy": right / n,
                "interval": wilson(right, n),
            }
        )
    return found


def expected_calibration_error(bins: list[dict]) -> float:
    """The mean gap between confidence and accuracy over the images (Naeini et al. 2015), from `reliability`."""
    return sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / sum(b["n"] for b in bins)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """The mean negative log-likelihood in nats, of logits float (N, C) divided by the temperature."""
    log_probabilities = log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature that minimises the negative log-likelihood of logits float (N, C) (Guo et al. 2017).

    None if there is no minimum: with every image right, colder is always better; with almost all wrong, hotter.
    """
    if (logits.argmax(axis=1) == labels).all():
        return None
    edge = math.log(_LARGEST)
    logits = logits.astype(np.float64)
    fit = minimize_scalar(
        lambda power: negative_log_likelihood(logits, labels, math.exp(power)),
        bounds=(-edge, edge),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return None if abs(fit.x) > edge - 0.01 else math.exp(fit.x)
