"""Stored predictions, from which every number of a report is computed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Features

from ftkit.data.feeding.tensors import Images, Viewed
from ftkit.errors import UserError
from ftkit.evaluation.gallery import write_gallery, write_samples
from ftkit.files import atomic_write
from ftkit.tasks import Predictions, task_of
from ftkit.training.loop.trainer import ImageTrainer

_FILE = "predictions.parquet"
_TEST_TIME = ("flip", "flip_and_shift")
_VALIDATION = "validation"


def predict_split(trainer: ImageTrainer, images: Images, test_time: str = "none") -> dict[str, Predictions]:
    """Predictions for a split: `plain`, and those of test-time augmentation if `test_time` asks for it.

    `flip` averages the logits over each image and its mirror image (Krizhevsky et al. 2012). `flip_and_shift` gives
    half of the weight to `flip`, and half to the same average over the image shifted by a pixel, up and left, and down
    and right (Jordan 2024, arXiv:2404.00498).
    """

    def averaged(plain: np.ndarray, shift: int) -> np.ndarray:
        return (plain + trainer.predict(Viewed(images, True, shift)).predictions) / 2

    predicted = {"plain": trainer.predict(images).predictions}
    if test_time != "none":
        predicted["flip"] = averaged(predicted["plain"], 0)
    if test_time == "flip_and_shift":
        shifted = [averaged(trainer.predict(Viewed(images, False, by)).predictions, by) for by in (-1, 1)]
        predicted["flip_and_shift"] = (predicted["flip"] + sum(shifted) / 2) / 2
    rows = images.index.cpu().numpy(), images.hashes, images.labels.cpu().numpy()
    about = images.about()
    return {name: images.task.predictions(*rows, logits, about) for name, logits in predicted.items()}


def write_evaluation(folder: Path, predicted: dict[str, Predictions], images: Images) -> dict:
    """Write predictions, gallery, samples and metrics.

    Args:
        folder: the folder for `plain`; the other predictions go into subfolders of their names.
        predicted: the result of `predict_split`, and optionally `validation`, on which the temperature is fitted.
        images: the evaluated split.

    Returns:
        The metrics.
    """
    for name, predictions in predicted.items():
        write_predictions(folder if name == "plain" else folder / name, predictions)
    write_gallery(folder, predicted["plain"], images)
    write_samples(folder, predicted["plain"], images)
    return write_metrics(folder)


def write_metrics(folder: Path) -> dict:
    """Write `metrics.json` from the stored predictions, and return its content.

    Raises:
        UserError: the predictions are missing or not ftkit's.
    """
    metrics = compute_metrics(folder)
    with atomic_write(folder / "metrics.json") as aside:
        aside.write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return metrics


def compute_metrics(folder: Path) -> dict:
    """The metrics of the predictions stored in a folder; see `compute_metrics` of their task.

    Raises:
        UserError: the predictions are missing or not ftkit's.
    """
    predictions, validation, test_time = read_evaluation(folder)
    return predictions.task.compute_metrics(predictions, validation, test_time)


def read_evaluation(folder: Path) -> tuple[Predictions, Predictions | None, dict[str, Predictions]]:
    """The stored predictions of an evaluation: for its split, for validation, and by test-time augmentation.

    Raises:
        UserError: the predictions are missing or not ftkit's.
    """
    validation = read_predictions(folder / _VALIDATION) if (folder / _VALIDATION).is_dir() else None
    test_time = {name: read_predictions(folder / name) for name in _TEST_TIME if (folder / name).is_dir()}
    return read_predictions(folder), validation, test_time


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write `predictions.parquet` into a folder, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / _FILE) as aside:
        pq.write_table(predictions.to_table(), aside)


def read_predictions(folder: Path) -> Predictions:
    """Read the `predictions.parquet` of a folder.

    Raises:
        UserError: the file is missing or not ftkit's.
    """
    path = folder / _FILE
    try:
        table = pq.read_table(path)
        return task_of(Features.from_arrow_schema(table.schema)).from_table(table)
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not a predictions file of ftkit: {error}") from None
