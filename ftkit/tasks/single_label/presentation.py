"""How predicted classes are shown in the report, the model card and the gallery."""

from typing import Any

import numpy as np

from ftkit.tasks.parts import Drawing, Section
from ftkit.tasks.single_label.predictions import Predictions

_CONFUSIONS = 10
_PICTURES = 24  # images of each kind
_LIKELIEST = 5  # classes listed with an enlarged image


def section(metrics: dict[str, Any], predictions: Predictions) -> Section:
    """The section of the report: confusions, classes, calibration and images.

    Args:
        metrics: the result of `compute_metrics`.
        predictions: the predictions that it was computed from.
    """
    from ftkit.tasks.single_label.figures import reliability_diagram  # late: matplotlib takes a while to load

    calibration = metrics["calibration"]
    bins, tempered = calibration["reliability"], calibration.get("tempered_reliability")
    return Section(
        template="single_label",
        links={"confusions": "Confusions", "classes": "Classes", "calibration": "Calibration", "images": "Images"},
        content={
            "calibration": calibration,
            "errors": (~predictions.hits).sum(),
            "confusions": _confusions(predictions),
        },
        drawings=(
            matrix_drawing(metrics, predictions.task.names),
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


def _confusions(predictions: Predictions) -> list[dict[str, Any]]:
    """The ten most frequent confusions: `label`, `predicted`, images `n`, and their `share` of the true class.

    `example` is the source of the most confident one.
    """
    matrix, names = predictions.matrix, predictions.task.names
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    found = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[i, j]:
            images = _first((predictions.labels == i) & (predictions.predicted == j), -predictions.confidences)
            about = {"label": names[i], "predicted": names[j], "example": predictions.sources[images[0]]}
            found.append(about | {"n": wrong[i, j], "share": wrong[i, j] / matrix[i].sum()})
    return found


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
    """The caption of an image in the gallery: `label`, `predicted`, its `probability`, and the `likeliest` classes.

    For the true class, also its `rank`, from 0, and its probability, `of_label`.
    """
    names = predictions.task.names
    return {
        "label": names[predictions.labels[position]],
        "predicted": names[predictions.predicted[position]],
        "probability": predictions.confidences[position],
        "likeliest": predictions.likeliest(position, _LIKELIEST),
        "rank": predictions.ranks[position],
        "of_label": predictions.probabilities[position, predictions.labels[position]],
    }


def errors(predictions: Predictions) -> list[dict[str, Any]]:
    """The wrong predictions, most confident first: `path`, `truth`, `prediction`, `confidence`."""
    wrong = np.flatnonzero(~predictions.hits)
    names, confidences = predictions.task.names, predictions.confidences
    return [
        {
            "path": predictions.sources[position],
            "truth": names[predictions.labels[position]],
            "prediction": names[predictions.predicted[position]],
            "confidence": float(f"{confidences[position]:.6g}"),
        }
        for position in wrong[np.argsort(-confidences[wrong], kind="stable")]
    ]
