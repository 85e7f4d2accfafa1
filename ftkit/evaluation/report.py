"""The report of an evaluation, made of nothing but what its folder holds."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.errors import UserError
from ftkit.evaluation import plots
from ftkit.evaluation.gallery import least_confident_hits, most_confident_errors, thumbnail
from ftkit.evaluation.metrics import Predictions
from ftkit.evaluation.pages import write_pages
from ftkit.evaluation.predictions import read_predictions

_CONFUSIONS = 10
HEADLINE = {
    "accuracy": ("accuracy", "the share of right predictions"),
    "top_5_accuracy": ("top-5 accuracy", "the truth is among the five likeliest classes"),
    "macro_f1": ("macro F1", "the mean of F1 over the classes"),
    "negative_log_likelihood": ("negative log-likelihood", "nats an image; less is better"),
    "brier_score": ("Brier score", "squared distance of the probabilities from the truth, 0 to 2; less is better"),
    "expected_calibration_error": (
        "expected calibration error",
        "how far confidence is from accuracy; less is better",
    ),
    "majority_baseline": ("majority baseline", "accuracy of always naming the most frequent class"),
}
_TEST_TIME = {
    "flip": "averaged over each image and its mirror image",
    "flip_and_shift": "averaged over mirror images and shifts by a pixel",
}


def evaluation_folder(folder: Path) -> Path:
    """Where in a run's folder the evaluation lies; the folder itself where it is an evaluation's own.

    Raises:
        UserError: it is neither.
    """
    for place in (folder / "evaluation", folder):
        if (place / "predictions.parquet").is_file():
            return place
    raise UserError(f"{folder} holds no evaluation: give the folder of a run that is finished, or one that "
                    "recipes/eval.py wrote")  # fmt: skip


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run, or of an evaluation.

    Raises:
        UserError: it is missing or cannot be read.
    """
    path = folder / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}: give the folder of a run that is finished") from None


def write_report(folder: Path, record: dict[str, Any] | None = None) -> Path:
    """Write `report.html` and `report.md` beside the predictions, and return the page's path.

    The same bytes come out whenever the same run is given.

    Args:
        folder: of a run, or of an evaluation, with its `metrics.json`.
        record: what its `run.json` says, where that is not written yet.

    Raises:
        UserError: something of it is missing.
    """
    place, record = evaluation_folder(folder), record or read_record(folder)
    metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    predictions = read_predictions(place)
    stages = [_with_history(folder, number, stage) for number, stage in enumerate(record.get("stages", []))]
    matrix, calibration = np.array(metrics["confusion_matrix"]), metrics["calibration"]
    content = {
        "record": record,
        "metrics": metrics,
        "headline": headline(metrics),
        "calibration": calibration,
        "curves": plots.learning_curves(stages) if any(stage["history"] for stage in stages) else None,
        "matrix": plots.confusion_matrix(matrix, predictions.class_names),
        "reliability": plots.reliability_diagram(calibration["reliability"], calibration.get("tempered_reliability")),
        "confusions": _confusions(matrix, predictions.class_names),
        "errors": [_picture(place, predictions, position) for position in most_confident_errors(predictions)],
        "hits": [_picture(place, predictions, position) for position in least_confident_hits(predictions)],
    }
    write_pages(place, "report", content)
    return place / "report.html"


def headline(metrics: dict[str, Any]) -> list[tuple[str, float, list[float] | None, str]]:
    """Name, value, interval and explanation of each number at the top."""
    intervals = metrics["intervals"]
    rows = [(*texts, metrics[key], intervals.get(key)) for key, texts in HEADLINE.items() if key in metrics]
    for name, accuracy in metrics.get("test_time_accuracy", {}).items():
        rows.append(("accuracy at test time", _TEST_TIME[name], accuracy, intervals[name]))
    return [(name, value, interval, about) for name, about, value, interval in rows]


def _with_history(folder: Path, number: int, stage: dict[str, Any]) -> dict[str, Any]:
    state = folder / "stages" / f"{number}-{stage['stage']}" / "trainer_state.json"
    return stage | {"history": json.loads(state.read_text())["log_history"] if state.is_file() else []}


def _confusions(matrix: np.ndarray, names: list[str]) -> list[tuple[str, str, int, float]]:
    """The ten most frequent: true class, prediction, images, and their share of the true class."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(names[i], names[j], wrong[i, j], wrong[i, j] / matrix[i].sum()) for i, j in cells if wrong[i, j]]


def _picture(place: Path, predictions: Predictions, position: int) -> dict[str, Any]:
    names = predictions.class_names
    picture = base64.b64encode(thumbnail(place, predictions, position).read_bytes()).decode()
    return {
        "source": f"data:image/png;base64,{picture}",
        "index": predictions.index[position],
        "label": names[predictions.labels[position]],
        "predicted": names[predictions.predicted[position]],
        "probability": predictions.confidences[position],
    }
