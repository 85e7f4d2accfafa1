"""Counts and scores by class. The `evaluate` metric is defined here, so that nothing is downloaded."""

from typing import Any

import datasets
import evaluate
import numpy as np

from ftkit.statistics.intervals import f1_interval, wilson


class ConfusionMatrix(evaluate.Metric):
    """Counts by true class (rows) and predicted class (columns), from class indices int64 (N,)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="counts by true and predicted class",
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, np.ndarray]:
        pairs = np.asarray(references) * num_classes + np.asarray(predictions)
        counts = np.bincount(pairs, minlength=num_classes**2)
        return {"confusion_matrix": counts.reshape(num_classes, num_classes)}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 (C, C) by true class (rows) and predicted class (columns), from class indices int64 (N,)."""
    module = ConfusionMatrix(keep_in_memory=True)
    return module.compute(predictions=predicted, references=labels, num_classes=num_classes)["confusion_matrix"]


def class_scores(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class, with their 95% intervals.

    A class without labels has no recall (None). A class without predictions has precision 0, as in scikit-learn with
    `zero_division=0`; a class with neither has None for all three.

    Args:
        matrix: int (C, C), from `confusion_matrix`.

    Returns:
        For each class: `n`, `accuracy` (the recall), `precision`, `f1` and `intervals`.
    """
    rows = []
    for hits, labelled, predicted in zip(np.diag(matrix), matrix.sum(1), matrix.sum(0), strict=True):
        occurs = labelled + predicted > 0
        rows.append(
            {
                "n": int(labelled),
                "accuracy": float(hits / labelled) if labelled else None,
                "precision": float(hits / max(predicted, 1)) if occurs else None,
                "f1": float(2 * hits / (labelled + predicted)) if occurs else None,
                "intervals": {
                    "accuracy": wilson(hits, labelled),
                    "precision": wilson(hits, predicted),
                    "f1": f1_interval(hits, labelled + predicted - 2 * hits),
                },
            }
        )
    return rows


def macro_f1(matrix: np.ndarray) -> float:
    """The mean F1 over the classes that occur as label or prediction."""
    hits, seen = np.diag(matrix), matrix.sum(1) + matrix.sum(0)
    return float((2 * hits / np.maximum(seen, 1))[seen > 0].mean())
