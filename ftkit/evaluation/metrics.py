"""Metrics as `evaluate` modules that live in the package: nothing is fetched."""

from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np


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

    A class without predictions has precision 0, as in scikit-learn with `zero_division=0`; a class that occurs
    neither as label nor as prediction has none of them (None) and is left out of the mean.
    """

    description = "precision, recall and F1 of each class"

    def _compute(self, predictions, references, num_classes: int) -> dict[str, Any]:
        matrix = ConfusionMatrix()._compute(predictions, references, num_classes)["confusion_matrix"]
        hits, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(labelled, 1)
        f1 = 2 * hits / np.maximum(labelled + predicted, 1)
        occurs = (labelled + predicted) > 0
        return {
            "macro_f1": float(f1[occurs].mean()),
            "classes": [
                {"n": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
                if seen
                else {"n": 0, "precision": None, "recall": None, "f1": None}
                for n, p, r, f, seen in zip(labelled, precision, recall, f1, occurs, strict=True)
            ],
        }


class Predictions(NamedTuple):
    """What is stored of an evaluation, a row an image.

    `index` int64 (N,), the row in the split it was read from; `labels` and `predicted` int64 (N,), indices into
    `class_names`; `losses` float64 (N,), the cross-entropy of each image in nats; `probabilities` float32 (N, C).
    """

    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray
    class_names: list[str]


def compute_metrics(predictions: Predictions) -> dict[str, Any]:
    """All numbers of `metrics.json`.

    Returns:
        `n`, `accuracy`, `macro_f1`, `negative_log_likelihood` (nats an image), `majority_baseline` (the accuracy of
        always naming the most frequent class), `per_class` by name (`n`, `accuracy` = recall, `precision`, `f1`) and
        `confusion_matrix` (rows: true class).
    """
    inputs = {"predictions": predictions.predicted, "references": predictions.labels}
    class_names, n = predictions.class_names, len(predictions.labels)

    def metric(module: type[_ClassMetric], **options):
        return module(keep_in_memory=True).compute(**inputs, **options)

    scores = metric(ClassScores, num_classes=len(class_names))
    matrix = metric(ConfusionMatrix, num_classes=len(class_names))["confusion_matrix"]
    return {
        "n": n,
        "accuracy": metric(Accuracy)["accuracy"],
        "macro_f1": scores["macro_f1"],
        "negative_log_likelihood": float(predictions.losses.mean()),
        "majority_baseline": float(matrix.sum(1).max() / max(n, 1)),
        "per_class": {
            name: {"n": row["n"], "accuracy": row["recall"], "precision": row["precision"], "f1": row["f1"]}
            for name, row in zip(class_names, scores["classes"], strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }
