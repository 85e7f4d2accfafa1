"""The model card; everything it says about quality is computed from the stored predictions."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ftkit.config.configuration import chosen
from ftkit.errors import UserError
from ftkit.evaluation.pages import render
from ftkit.evaluation.predictions import compute_metrics, read_predictions
from ftkit.evaluation.record import data_notes
from ftkit.evaluation.report import evaluation_folder, read_record
from ftkit.files import atomic_write
from ftkit.places import all_shown
from ftkit.tasks import Metric, Task
from ftkit.training.checkpointing.output_folder import CHANGES_NOTHING

_ROUNDING = 1e-9  # logarithms and exponentials differ in their last digits between processors
# Keys that the card shows elsewhere, or that only name a place on the author's disk.
_NO_HYPERPARAMETERS = CHANGES_NOTHING | {
    *("dataset", "data_dir", "augment", "image_transform", "model", "method", "seed"),
    *("deepspeed", "fsdp_config", "accelerator_config"),
}


def write_card(run: Path, repo_id: str | None = None, record: dict[str, Any] | None = None) -> Path:
    """Write the card of a run's model, `model/README.md`, from its metrics and its record.

    Args:
        run: the run's folder.
        repo_id: the name on the Hub, for the code example.
        record: the content of `run.json`, if that file is not written yet.

    Raises:
        UserError: the run is not finished.
    """
    record, config = record or read_record(run), read_config(run)
    evaluation = evaluation_folder(run)
    task = read_predictions(evaluation).task
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    drawn_from = record.get("drawn_from", {}).get("test")
    adapters = (run / "model" / "adapter_config.json").is_file()
    content = {
        "record": record,
        "metrics": metrics,
        "config": config,
        "metadata": _metadata(record, config, task, metrics, adapters, repo_id).to_yaml(),
        "drawn": f", drawn at random from {drawn_from:,}" if drawn_from else "",
        "notes": data_notes(record),
        "headline": task.headline(metrics),
        "task": task,
        "figure": task.card_figure(metrics),
        "hyperparameters": {key: all_shown(v) for key, v in chosen(config).items() if key not in _NO_HYPERPARAMETERS}
        | {"seed": record["seed"]},
        "repo_id": repo_id or "path/to/this/folder",
        "is_adapter": adapters,
        "own_code": any((run / "model").glob("modeling_*.py")),
    }
    path = run / "model" / "README.md"
    with atomic_write(path) as aside:
        aside.write_text(render("card.md", content), encoding="utf-8")
    return path


def read_config(run: Path) -> dict[str, Any]:
    """The `config.yaml` of a run.

    Raises:
        UserError: the file is missing.
    """
    try:
        return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{run} is not a run's folder: {error}") from None


def _metadata(
    record: dict, config: dict, task: Task, metrics: dict, adapters: bool, repo_id: str | None
) -> ModelCardData:
    """The metadata for the Hub; the `model-index` lists every metric of the report."""
    results = [
        EvalResult(
            task_type=task.hub_task,
            dataset_type=record.get("hub_dataset") or record["dataset"],
            dataset_name=record["dataset"],
            dataset_split="test",
            metric_type=metric.hub_type or "",
            metric_value=metrics[key],
            metric_name=metric.title,
            verified=False,
        )
        for key, metric in _results(task, metrics).items()
    ]
    return ModelCardData(
        library_name="peft" if adapters else "transformers",
        pipeline_tag=task.hub_task,
        base_model=record.get("base_model"),
        datasets=[record["hub_dataset"]] if record.get("hub_dataset") else None,
        license=config.get("hub_license"),
        tags=[task.hub_task, "vision", "ftkit", config["method"]],
        model_name=repo_id or f"{record['model']} on {record['dataset']}",
        eval_results=results,
    )


def _results(task: Task, metrics: dict) -> dict[str, Metric]:
    """The metrics listed in the `model-index`."""
    return {key: metric for key, metric in task.metrics.items() if key in metrics and metric.hub_type}


def verify_card(run: Path, card: ModelCard) -> list[str]:
    """Every difference between a card and the run's predictions, one sentence each."""
    evaluation = evaluation_folder(run)
    task, metrics = read_predictions(evaluation).task, compute_metrics(evaluation)
    data: Any = card.data  # a model's `ModelCardData`
    claimed = {result.metric_name: result.metric_value for result in data.eval_results or []}
    wrong = []
    for key, metric in _results(task, metrics).items():
        said = claimed.get(metric.title)
        if not (isinstance(said, int | float) and abs(said - metrics[key]) <= _ROUNDING):
            wrong.append(f"{metric.title}: the card says {said}, the predictions give {metrics[key]}")
    # By number: the card of an older version may name a row differently.
    shown = Counter(re.findall(r"^\| [^|]+ \| ([\d.]+) \|", card.text, re.MULTILINE))
    for name, value, *_ in task.headline(metrics):
        shown[f"{value:.4f}"] -= 1
        if shown[f"{value:.4f}"] < 0:
            wrong.append(f"the text lacks the line '| {name} | {value:.4f} |'")
    return wrong
