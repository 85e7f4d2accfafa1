"""The report of an evaluation, made only from the files in the evaluation's folder."""

import base64
import csv
import json
import shlex
from pathlib import Path
from typing import Any

from ftkit.errors import UserError
from ftkit.evaluation import plots
from ftkit.evaluation.gallery import larger, thumbnail
from ftkit.evaluation.pages import write_pages
from ftkit.evaluation.predictions import read_predictions
from ftkit.evaluation.record import data_notes, evaluated_images
from ftkit.files import atomic_write
from ftkit.places import all_shown, command_shown
from ftkit.tasks import Predictions


def evaluation_folder(folder: Path) -> Path:
    """The folder of the evaluation: `evaluation` in a run's folder, or the folder itself.

    Raises:
        UserError: neither holds predictions.
    """
    for place in (folder / "evaluation", folder):
        if (place / "predictions.parquet").is_file():
            return place
    raise UserError(
        f"{folder} holds no evaluation: give the folder of a finished run or the --output_dir of recipes/eval.py"
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run, or of an evaluation.

    Raises:
        UserError: `run.json` is missing or cannot be read.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}: give the folder of a finished run") from None
    # Older versions of ftkit recorded the paths of their machine.
    command = command_shown(shlex.split(record["command"]), all_shown)
    skipped = {split: all_shown(images) for split, images in record["skipped_images"].items()}
    return record | {"command": shlex.join(command), "model": all_shown(record["model"]), "skipped_images": skipped}


def write_report(folder: Path, record: dict[str, Any] | None = None) -> Path:
    """Write `report.html`, `report.md` and `errors.csv` beside the predictions, and return the path of `report.html`.

    The same run always gives the same bytes.

    Args:
        folder: the folder of a run or an evaluation, with its `metrics.json`.
        record: the content of its `run.json`, if that file is not written yet.

    Raises:
        UserError: the predictions or `run.json` are missing.
    """
    place, record = evaluation_folder(folder), record or read_record(folder)
    metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    predictions = read_predictions(place)
    stages = [_with_history(folder, number, stage) for number, stage in enumerate(record.get("stages", []))]
    task, chosen = predictions.task, predictions.task.gallery(predictions)
    content = {
        "record": record,
        "metrics": metrics,
        "evaluated": evaluated_images(record, metrics["n"]),
        "notes": data_notes(record),
        "headline": task.headline(metrics),
        "outputs": task.size,
        "data_template": task.data_template,
        "validation_loss": task.validation_loss,
        "curves": plots.learning_curves(stages, task.score_metric) if any(s["history"] for s in stages) else None,
        "pictures": {kind: [_picture(place, predictions, at) for at in images] for kind, images in chosen.items()},
    }
    write_pages(place, "report", content, [task.section(metrics, predictions)])
    _write_table(place / "errors.csv", task.errors(predictions))
    return place / "report.html"


def _with_history(folder: Path, number: int, stage: dict[str, Any]) -> dict[str, Any]:
    state = folder / "stages" / f"{number}-{stage['stage']}" / "trainer_state.json"
    return stage | {"history": json.loads(state.read_text())["log_history"] if state.is_file() else []}


def _picture(place: Path, predictions: Predictions, position: int) -> dict[str, Any]:
    whole = larger(place, predictions, position)
    about = {
        "thumbnail": _embedded(thumbnail(place, predictions, position), "png"),
        "larger": _embedded(whole, "jpeg") if whole.is_file() else None,
        "position": position,
        "path": predictions.sources[position],
    }
    return about | predictions.task.caption(predictions, position)


def _embedded(picture: Path, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "truth", "prediction", "confidence"])
        writer.writeheader()
        writer.writerows(rows)
