"""Metrics as `evaluate` modules that live in the package: nothing is fetched."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import log_softmax, softmax

from ftkit.statistics.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from ftkit.statistics.intervals import f1_interval, macro_f1_interval, mean_interval, wilson

_TOP_5_CLASSES = 20  # with fewer, five guesses say little


class _ClassMetric(evaluate.Metric):
    """A metric of predicted against true class indices, both int64 (N,)."""

    description = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )


class Accuracy(_ClassMetric):
    """The share of predictions that are right."""

    description = "share of right predictions"

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class ConfusionMatrix(_ClassMetric):
    """Counts by true class (rows) and predicted class (columns)."""

    description = "counts by true and predicted class"

    def _compute(self, predictions, references, num_classes: int) -> dict[str, np.ndarray]:
        pairs = np.asarray(references) * num_classes + np.asarray(predictions)
        counts = np.bincount(pairs, minlength=num_classes**2)
        return {"confusion_matrix": counts.reshape(num_classes, num_classes)}


class ClassScores(_ClassMetric):
    """Precision, recall and F1 of each class, and the mean of F1 over the classes that occur (macro F1).

    A class without labels has no recall (None). A class without predictions has precision 0, as in scikit-learn with
    `zero_division=0`; a class that occurs neither as label nor as prediction has none of the three and is left out of
    the mean.
    """

    description = "precision, recall and F1 of each class"

    def _compute(self, predictions, references, num_classes: int) -> dict[str, Any]:
        matrix = ConfusionMatrix()._compute(predictions, references, num_classes)["confusion_matrix"]
        hits, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        precision = hits / np.maximum(predicted, 1)
        f1 = 2 * hits / np.maximum(labelled + predicted, 1)
        occurs = (labelled + predicted) > 0
        return {
            "macro_f1": float(f1[occurs].mean()),
            "classes": [
                {
                    "n": int(n),
                    "precision": float(p) if seen else None,
                    "recall": float(right / n) if n else None,
                    "f1": float(f) if seen else None,
                }
                for n, right, p, f, seen in zip(labelled, hits, precision, f1, occurs, strict=True)
            ],
        }


@dataclass
class Predictions:
    """What is stored of an evaluation, a row an image.

    Attributes:
        index: int64 (N,), the row in the split it was read from.
        hashes: uint64 (N,), of the image files' bytes.
        labels: int64 (N,), indices into `class_names`.
        logits: float32 (N, C); all numbers are computed from them in float64.
        class_names: of the model.
    """

    index: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """float64 (N, C)."""
        return log_softmax(self.logits.astype(np.float64), axis=1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 (N, C)."""
        return softmax(self.logits.astype(np.float64), axis=1)

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 (N,), the class with the greatest logit."""
        return self.logits.argmax(axis=1)

    @cached_property
    def confidences(self) -> np.ndarray:
        """float64 (N,), the probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @cached_property
    def hits(self) -> np.ndarray:
        """bool (N,), whether the prediction is right."""
        return self.predicted == self.labels

    @cached_property
    def ranks(self) -> np.ndarray:
        """int64 (N,), how many classes stand before the true one: of equal logits the first, as for `predicted`."""
        own = self.logits[np.arange(len(self)), self.labels][:, None]
        earlier = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > own) | ((self.logits == own) & earlier)).sum(axis=1)


def compute_metrics(
    predictions: Predictions, validation: Predictions | None = None, test_time: dict[str, Predictions] | None = None
) -> dict[str, Any]:
    """All numbers of `metrics.json`.

    Args:
        predictions: of the split that is reported on.
        validation: of the split that the temperature is fitted on.
        test_time: by name, of the same images with test-time augmentation.

    Returns:
        `n`, `accuracy`, `top_5_accuracy` (from 20 classes on), `macro_f1`, `negative_log_likelihood` (nats an image),
        `brier_score` (the squared distance of the probabilities from the truth, summed over classes, 0 to 2; Brier
        1950), `expected_calibration_error`, `majority_baseline` (the accuracy of always naming the most frequent
        class), `intervals` (95%, of those that have one), `test_time_accuracy` by name, `calibration` (`reliability`
        bins, the `temperature` that validation gives and what it does), `per_class` by name (`n`, `accuracy` =
        recall, `precision`, `f1`, `intervals`; see `ClassScores` for where they are None) and `confusion_matrix`
        (rows: true class).
    """
    n, labels, class_names = len(predictions), predictions.labels, predictions.class_names

    def metric(module: type[_ClassMetric], of: Predictions = predictions, **options):
        return module(keep_in_memory=True).compute(predictions=of.predicted, references=labels, **options)

    scores = metric(ClassScores, num_classes=len(class_names))
    matrix = metric(ConfusionMatrix, num_classes=len(class_names))["confusion_matrix"]
    true_class = np.arange(n), labels
    losses = -predictions.log_probabilities[true_class]
    # |p - onehot|² = |p|² - 2 p_label + 1, without a second matrix of that size
    briers = np.square(predictions.probabilities).sum(1) - 2 * predictions.probabilities[true_class] + 1
    bins = reliability(predictions.confidences, predictions.hits)
    metrics = {
        "n": n,
        "accuracy": metric(Accuracy)["accuracy"],
        "macro_f1": scores["macro_f1"],
        "negative_log_likelihood": float(losses.mean()),
        "brier_score": float(briers.mean()),
        "expected_calibration_error": expected_calibration_error(bins),
        "majority_baseline": float(matrix.sum(1).max() / n),
        "intervals": {
            "accuracy": wilson(predictions.hits.sum(), n),
            "macro_f1": macro_f1_interval(matrix),
            "negative_log_likelihood": mean_interval(losses),
            "brier_score": mean_interval(briers),
        },
    }
    if len(class_names) >= _TOP_5_CLASSES:
        among_5 = predictions.ranks < 5
        metrics["top_5_accuracy"] = float(among_5.mean())
        metrics["intervals"]["top_5_accuracy"] = wilson(among_5.sum(), n)
    if test_time:
        metrics["test_time_accuracy"] = {name: metric(Accuracy, of)["accuracy"] for name, of in test_time.items()}
        metrics["intervals"] |= {name: wilson(of.hits.sum(), n) for name, of in test_time.items()}
    return metrics | {
        "calibration": {"reliability": bins, **_tempered(predictions, validation)},
        "per_class": dict(zip(class_names, map(_class_row, scores["classes"], *_counts(matrix)), strict=True)),
        "confusion_matrix": matrix.tolist(),
    }


def _counts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.diag(matrix), matrix.sum(1), matrix.sum(0)


def _class_row(scores: dict[str, Any], hits: int, labelled: int, predicted: int) -> dict[str, Any]:
    return {
        "n": scores["n"],
        "accuracy": scores["recall"],
        "precision": scores["precision"],
        "f1": scores["f1"],
        "intervals": {
            "accuracy": wilson(hits, labelled),
            "precision": wilson(hits, predicted),
            "f1": f1_interval(hits, labelled + predicted - 2 * hits),
        },
    }


def _tempered(predictions: Predictions, validation: Predictions | None) -> dict[str, Any]:
    """What dividing by the temperature that validation gives would do to the calibration."""
    if validation is None:
        return {}
    temperature = fit_temperature(validation.logits, validation.labels)
    if temperature is None:
        return {"fitted_on": len(validation), "temperature": None}
    tempered = replace(predictions, logits=predictions.logits.astype(np.float64) / temperature)
    bins = reliability(tempered.confidences, tempered.hits)
    return {
        "fitted_on": len(validation),
        "temperature": temperature,
        "tempered_reliability": bins,
        "tempered_expected_calibration_error": expected_calibration_error(bins),
        "tempered_negative_log_likelihood": negative_log_likelihood(tempered.logits, tempered.labels),
    }
