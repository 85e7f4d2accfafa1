"""`run.json`, the record of a finished run, and the summary that a run prints at its end.

Report, card and commit messages are made from the record, so it names no folder of this machine.
"""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ftkit.config import DataArguments
from ftkit.config.configuration import Config
from ftkit.console import banner, fact
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.kinds import sentences
from ftkit.data.sources.duplicates import duplicates
from ftkit.data.sources.evaluation import ALL
from ftkit.data.sources.load import HUB_NAMES
from ftkit.files import atomic_write
from ftkit.methods.plan import starts_from_trained_weights
from ftkit.models.pretrained import hub_name
from ftkit.places import command_shown, is_path, shown
from ftkit.precision import precision_of
from ftkit.tasks import Task
from ftkit.training.checkpointing.continuity import TABLE
from ftkit.training.provenance import environment, file_hashes, peak_memory_mb

logger = logging.getLogger(__name__)


def describe_data(data: DataArguments, images: dict[str, Images]) -> dict[str, Any]:
    """The part of `run.json` about the data: splits, classes, skipped images and duplicates between splits."""
    return {
        "dataset": shown(data.dataset or data.data_dir or ""),
        "data_engine": next(iter(images.values())).engine,
        "splits": {split: len(rows) for split, rows in images.items()},
        "image_kinds": {split: dict(rows.kinds) for split, rows in images.items() if rows.kinds},
        "class_counts": {split: rows.task.counts(rows.labels) for split, rows in images.items()},
        "duplicates": duplicates(images),
        "skipped_images": {split: [*map(_skipped, rows.skipped)] for split, rows in images.items() if rows.skipped},
        "dataset_fingerprints": {split: rows.fingerprint for split, rows in images.items()},
    }


def _skipped(bad: dict[str, Any]) -> dict[str, Any]:
    """A skipped image, named by its source instead of the path on this machine."""
    source = bad["source"]
    return {"index": bad["index"], "file": source, "xxh3_64": bad["xxh3_64"]} | {
        "reason": bad["reason"].replace(bad["file"], source)
    }


def evaluated_images(record: dict[str, Any], n: int) -> str:
    """Which images were evaluated, such as "100 of the 360 images of the test split, drawn at random"."""
    split, drawn_from = record["evaluated_split"], record.get("drawn_from", {})
    if split in drawn_from:
        whole = f"{drawn_from[split]:,} images" + (f" of the {split} split" if split != ALL else "")
        return f"{n:,} of the {whole}, drawn at random"
    images = f"{n:,} image{'s' if n != 1 else ''}"
    return (f"all {images}" if n > 1 else images) if split == ALL else f"{images} of the {split} split"


def data_notes(record: dict[str, Any]) -> list[str]:
    """The facts about the data that limit the results, for report and card, one sentence each."""
    notes = [
        f"The {split} split has {drawn_from:,} images, of which {record['splits'][split]:,} were drawn at random"
        for split, drawn_from in record.get("drawn_from", {}).items()
        if split in record["splits"] and split != ALL
    ]
    if seen := record.get("seen_in_training"):
        notes.append(f"{seen:,} of the evaluated images are among those that the model was trained on")
    return notes + sentences(record.get("image_kinds", {}), record["splits"])


def seen_in_training(model: str, images: Images) -> int:
    """How many of these images were in the train split of the run that the model, a folder, belongs to."""
    for folder in (Path(model), Path(model).parent):
        if (folder / TABLE).is_file():
            return int(np.isin(images.hashes, load_file(folder / TABLE)["train/hashes"]).sum())
    return 0


def warn_of_seen_images(images: dict[str, Images]) -> None:
    """Warn of images of validation and test whose files are byte-identical to files of train."""
    counts = {split: int(np.isin(rows.hashes, images["train"].hashes).sum()) for split, rows in images.items()}
    shared = [f"{n:,} of the {len(images[s]):,} images of {s}" for s, n in counts.items() if n and s != "train"]
    if shared:
        logger.warning("  identical to images of train: %s (the report lists them)", " and ".join(shared))


def _hub_dataset(data: DataArguments) -> str | None:
    """The dataset's name on the Hub, or None for other data."""
    name = HUB_NAMES.get(data.dataset or "", data.dataset or "")
    return name if "/" in name and not is_path(name) else None


def describe_command() -> str:
    """The command line of this process, without local paths and the launcher's options.

    `config.yaml` repeats the run on this machine.
    """
    return shlex.join(["python", *command_shown(sys.argv)])


def describe_run(
    config: Config,
    images: dict[str, Images],
    parameters: dict[str, int],
    flops: int,
    stages: list[dict],
    seconds: float,
) -> dict[str, Any]:
    """The content of `run.json` without the metrics, ready for JSON.

    Args:
        parameters: the model's numbers of parameters, `total` and `trained`.
        flops: floating-point operations of one image's forward pass.
        stages: the results of `ftkit.training.stages.running.run_plan`.
        seconds: time since the start of the run.
    """
    return {
        "command": describe_command(),
        **describe_data(config.data, images),
        "evaluated_split": "test",
        "hub_dataset": _hub_dataset(config.data),
        "image_shape": list(images["test"].shape),
        "model": shown(config.model.model),
        "base_model": hub_name(config.model.model) if starts_from_trained_weights(config.method.method) else None,
        "method": config.method.method,
        "seed": config.training.seed,
        "parameters": parameters,
        "flops_per_image": flops,
        "model_files": file_hashes(Path(config.training.output_dir) / "model"),
        "stages": stages,
        "seconds": round(seconds, 1),
        "processes": config.training.world_size,
        "precision": precision_of(config.training),
        "device": str(config.training.device),
        "peak_memory_mb": peak_memory_mb(),
        **environment(),
    }


def write_run_record(folder: Path, record: dict[str, Any], task: Task, metrics: dict[str, Any]) -> None:
    """Write `run.json`, which marks a run as finished, atomically."""
    summary = {"test": {key: metrics[key] for key in task.summary if key in metrics}}
    with atomic_write(folder / "run.json") as aside:
        aside.write_text(json.dumps(record | summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show_result(task: Task, metrics: dict[str, Any], about: str) -> None:
    """Print the score, the number of images, the text `about` these, and the scores of test-time augmentation."""
    fact(task.score_metric.title, f"{metrics[task.score]:.4f} on {metrics['n']:,} {about}")
    for name, value in metrics.get(f"test_time_{task.score}", {}).items():
        fact("", f"{value:.4f} with test_time_augmentation: {name}")


def show_evaluation(task: Task, metrics: dict[str, Any]) -> None:
    """Print the result of evaluating a saved model: the score and the other metrics of the summary."""
    others = [key for key in task.metrics if key in task.summary and key != task.score]
    show_result(task, metrics, ", ".join(["images", *(f"{task.metrics[k].title} {metrics[k]:.4f}" for k in others)]))


def next_steps(folder: Path, record: dict[str, Any], task: Task, metrics: dict[str, Any]) -> None:
    """Print the result, the folder that holds it, and possible next steps."""
    banner("done")
    chosen = record["stages"][-1]["best_step"] is not None
    weights = "chosen on validation" if chosen else "the last weights of training"
    show_result(task, metrics, f"test images ({weights})")
    fact("time", f"{record['seconds']:.1f} s, {sum(s['seconds'] for s in record['stages']):.1f} s of it training")
    fact("model", folder / "model")
    fact("report", folder / "evaluation" / "report.html")
    fact("repeat", f"accelerate launch recipes/finetune.py --config {folder / 'config.yaml'} --output_dir <other>")
    fact("evaluate", f"accelerate launch recipes/eval.py --model {folder / 'model'}")
    fact("push", f"python recipes/push.py {folder} --hub_model_id <user>/<name>")
    luck = f"how much of the {task.score_metric.title} is luck"
    suggestion = f"--seed 43 --output_dir <other>, to see {luck}"
    if record["dataset"] == "digits":
        suggestion = "your own images: --data_dir <folder with one folder per class> --model convnet"
    fact("try next", suggestion)
