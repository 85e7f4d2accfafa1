"""Stored predictions: what every number of a report is computed from."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value
from scipy.special import log_softmax

from ftkit.data.tensors import Images, Viewed
from ftkit.errors import UserError
from ftkit.evaluation.metrics import Predictions, compute_metrics
from ftkit.evaluation.report import write_report
from ftkit.training.trainer import ImageTrainer


def predict_split(trainer: ImageTrainer, images: Images, test_time: str = "none") -> dict[str, np.ndarray]:
    """Logits float (N, C) of a split: those of the images, `plain`, and those of `test_time`, where there is such.

    `flip` are the logits averaged over each image and its mirror image (as in Krizhevsky et al. 2012).
    `flip_and_shift` give one half to these, the other to those of the image shifted by a pixel, up and left, and down
    and right, likewise (Jordan 2024, arXiv:2404.00498).
    """

    def averaged(plain: np.ndarray, shift: int) -> np.ndarray:
        return (plain + trainer.predict(Viewed(images, True, shift)).predictions) / 2

    predicted = {"plain": trainer.predict(images).predictions}
    if test_time != "none":
        predicted["flip"] = averaged(predicted["plain"], 0)
    if test_time == "flip_and_shift":
        shifted = [averaged(trainer.predict(Viewed(images, False, by)).predictions, by) for by in (-1, 1)]
        predicted["flip_and_shift"] = (predicted["flip"] + sum(shifted) / 2) / 2
    return predicted


def write_evaluation(
    folder: Path, predicted: dict[str, np.ndarray], images: Images, class_names: list[str], record: dict
) -> dict:
    """Write `predictions.parquet`, then `metrics.json` and `report.md` from what was written.

    What was predicted with test-time augmentation is evaluated likewise, in a folder of that name inside `folder`.

    Args:
        folder: made where it is missing.
        predicted: from `predict_split`.
        images: the split, with labels numbered as in `class_names`.
        class_names: the model's.
        record: what the report says of the run beside the metrics; see `write_report`.

    Returns:
        The metrics of the plain evaluation, with the `test_time_accuracy`, by name, of the others.
    """
    labels, index, others = images.labels.cpu().numpy(), images.index.cpu().numpy(), {}
    for name, logits in predicted.items():
        if name != "plain":
            others[name] = _write(folder / name, logits, labels, index, class_names, record, {})["accuracy"]
    return _write(folder, predicted["plain"], labels, index, class_names, record, others)


def _write(
    folder: Path,
    logits: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    class_names: list[str],
    record: dict,
    test_time_accuracy: dict[str, float],
) -> dict:
    """Write one evaluation.

    Args:
        folder: made where it is missing.
        logits: float (N, C).
        labels: int64 (N,), indices into `class_names`.
        index: int64 (N,), the row of each image in the split it was read from.
        record: what the report says of the run beside the metrics; see `write_report`.
        test_time_accuracy: of other evaluations of the same images, which lie in folders of these names.

    Returns:
        The metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(log_probabilities).astype(np.float32)
    label = ClassLabel(names=class_names)
    features = Features(
        index=Value("int64"),
        label=label,
        predicted=label,
        probabilities=List(Value("float32"), length=len(class_names)),
        loss=Value("float64"),
    )
    rows = {
        "index": index,
        "label": labels,
        "predicted": probabilities.argmax(1),
        "probabilities": list(probabilities),
        # The cross-entropy of each image: a probability in float32 may be 0 where this is large.
        "loss": -log_probabilities[np.arange(len(labels)), labels],
    }
    pq.write_table(Dataset.from_dict(rows, features=features).data.table, folder / "predictions.parquet")
    metrics = compute_metrics(read_predictions(folder / "predictions.parquet"))
    if test_time_accuracy:
        metrics["test_time_accuracy"] = test_time_accuracy
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(folder / "report.md", metrics, record)
    return metrics


def read_predictions(path: Path) -> Predictions:
    """Read a `predictions.parquet`.

    Raises:
        UserError: the file is missing or is not one of ftkit's.
    """
    try:
        table = pq.read_table(path)
        names = Features.from_arrow_schema(table.schema)["label"].names
        columns = [table[name].to_numpy() for name in ("index", "label", "predicted", "loss")]
        probabilities = np.stack(table["probabilities"].to_numpy())
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a predictions file of ftkit: {error}") from None
    return Predictions(*columns, probabilities, names)
