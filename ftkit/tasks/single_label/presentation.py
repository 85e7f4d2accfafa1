"""Class labels in the report, the model card and the gallery."""

from typing import Any

import numpy as np

from ftkit.tasks.parts import Drawing, Section
from ftkit.tasks.single_label.predictions import Predictions

_CONFUSIONS = 10
_PICTURES = 24  # images of each kind


def section(metrics: dict[str, Any], names: list[str]) -> Section:
    """The section of the report: confusions, classes, calibration and images.

    Args:
        metrics: the result of `compute_metrics`.
        names: the class names.
    """
    from ftkit.tasks.single_label.figures import reliability_diagram  # late: matplotlib takes a while to load

    matrix, calibration = np.array(metrics["confusion_matrix"]), metrics["calibration"]
    bins, tempered = calibration["reliability"], calibration.get("tempered_reliability")
    return Section(
        template="single_label",
        links={"confusions": "Confusions", "classes": "Classes", "calibration": "Calibration", "images": "Images"},
        content={"calibration": calibration, "confusions": _confusions(matrix, names)},
        drawings=(
            matrix_drawing(metrics, names),
            Drawing(
                "reliability_diagram",
                "Reliability diagram",
                lambda: reliability_diagram(bins, tempered),
                "Reliability diagram: accuracy against confidence, and the number of images in each bin",
            ),
        ),
    )


def matrix_drawing(metrics: dict[str, Any], names: list[str]) -> Drawing:
    """The figure of the confusion matrix."""
    from ftkit.tasks.single_label.figures import confusion_matrix  # late: matplotlib takes a while to load

    matrix = np.array(metrics["confusion_matrix"])
    hits = f"{int(np.trace(matrix)):,} of {matrix.sum():,} images are on the diagonal"
    title = "Confusion matrix"
    description = f"{title} of {len(names)} classes: {hits}"
    return Drawing("confusion_matrix", title, lambda: confusion_matrix(matrix, names), description)


def _confusions(matrix: np.ndarray, names: list[str]) -> list[tuple[str, str, int, float]]:
    """The ten most frequent confusions: true class, prediction, images, and their share of the true class."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(names[i], names[j], wrong[i, j], wrong[i, j] / matrix[i].sum()) for i, j in cells if wrong[i, j]]


def gallery(predictions: Predictions) -> dict[str, np.ndarray]:
    """Positions int64 of the images to show: up to 24 most confident `errors` and 24 least confident `hits`."""
    return {
        "errors": _first(~predictions.hits, -predictions.confidences),
        "hits": _first(predictions.hits, predictions.confidences),
    }


def _first(chosen: np.ndarray, order: np.ndarray) -> np.ndarray:
    positions = np.flatnonzero(chosen)
    return positions[np.argsort(order[positions], kind="stable")][:_PICTURES]


def caption(predictions: Predictions, position: int) -> dict[str, Any]:
    """The caption of an image in the gallery: `label`, `predicted` and its `probability`."""
    names = predictions.task.names
    return {
        "label": names[predictions.labels[position]],
        "predicted": names[predictions.predicted[position]],
        "probability": predictions.confidences[position],
    }
