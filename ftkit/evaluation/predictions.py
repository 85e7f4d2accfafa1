"""Stored predictions: what every number of a report is computed from."""

import json
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from scipy.special import softmax

from ftkit.config import UserError
from ftkit.evaluation.metrics import compute_metrics
from ftkit.evaluation.report import write_report


def write_evaluation(
    folder: Path, logits: np.ndarray, labels: np.ndarray, index: np.ndarray, class_names: list[str], record: dict
) -> dict:
    """Write `predictions.parquet`, then `metrics.json` and `report.md` from what was written.

    Args:
        folder: made where it is missing.
        logits: float (N, C).
        labels: int64 (N,), indices into `class_names`.
        index: int64 (N,), the row of each image in the split it was read from.
        record: what the report says of the run beside the metrics; see `write_report`.

    Returns:
        The metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probabilities = softmax(logits.astype(np.float64), axis=1).astype(np.float32)
    label = ClassLabel(names=class_names)
    features = Features(
        index=Value("int64"),
        label=label,
        predicted=label,
        probabilities=List(Value("float32"), length=len(class_names)),
    )
    rows = {
        "index": index,
        "label": labels,
        "predicted": probabilities.argmax(1),
        "probabilities": list(probabilities),
    }
    Dataset.from_dict(rows, features=features).to_parquet(folder / "predictions.parquet")
    labels, predicted, _, names = read_predictions(folder / "predictions.parquet")
    metrics = compute_metrics(labels, predicted, names)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(folder / "report.md", metrics, record)
    return metrics


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Labels (N,), predicted classes (N,), probabilities float32 (N, C) and the class names of a predictions file.

    Raises:
        UserError: the file is missing or is not one of ftkit's.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        names = Features.from_arrow_schema(table.schema)["label"].names
        probabilities = np.stack(table["probabilities"].to_numpy())
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a predictions file of ftkit: {error}") from None
    return table["label"].to_numpy(), table["predicted"].to_numpy(), probabilities, names
