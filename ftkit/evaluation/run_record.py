"""`run.json`, the record of a finished run, and the last screen."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ftkit.config import Config
from ftkit.console import banner, fact
from ftkit.data.tensors import Images
from ftkit.training.provenance import environment, peak_memory_mb


def describe_run(
    config: Config, images: dict[str, Images], model: PreTrainedModel, stages: list[dict], seconds: float
) -> dict[str, Any]:
    """What `run.json` says of a run beside its metrics; all of it can be written as JSON."""
    return {
        "command": shlex.join(["python", *sys.argv]),  # the launcher's own options are not handed down
        "dataset": config.data.dataset or Path(config.data.data_dir).name,
        "model": config.model.model,
        "method": config.method.method,
        "seed": config.training.seed,
        "data_engine": images["train"].engine,
        "splits": {split: len(rows) for split, rows in images.items()},
        "skipped_images": {split: rows.skipped for split, rows in images.items() if rows.skipped},
        "dataset_fingerprints": {split: rows.fingerprint for split, rows in images.items()},
        "parameters": {"total": model.num_parameters(), "trained": max(s["trained_parameters"] for s in stages)},
        "stages": stages,
        "seconds": round(seconds, 1),
        "processes": config.training.world_size,
        "device": str(config.training.device),
        "peak_memory_mb": peak_memory_mb(),
        **environment(),
    }


def write_run_record(folder: Path, record: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write `run.json`, by which a run counts as finished: whole or not at all."""
    keys = ("n", "accuracy", "macro_f1", "test_time_accuracy")
    summary = {"test": {key: metrics[key] for key in keys if key in metrics}}
    aside = folder / ".run.json"
    aside.write_text(json.dumps(record | summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, folder / "run.json")


def next_steps(folder: Path, record: dict[str, Any], metrics: dict[str, Any]) -> None:
    """The last screen: the result, where it lies, and what to try."""
    banner("done")
    fact("accuracy", f"{metrics['accuracy']:.4f} on {metrics['n']:,} test images (chosen on validation)")
    for name, accuracy in metrics.get("test_time_accuracy", {}).items():
        fact("", f"{accuracy:.4f} with test_time_augmentation: {name}")
    fact("time", f"{record['seconds']:.1f} s, {sum(s['seconds'] for s in record['stages']):.1f} s of it training")
    fact("model", folder / "model")
    fact("report", folder / "evaluation" / "report.md")
    fact("repeat", f"accelerate launch recipes/finetune.py --config {folder / 'config.yaml'} --output_dir <other>")
    fact("evaluate", f"accelerate launch recipes/evaluate.py --model {folder / 'model'}")
    suggestion = "--seed 43 --output_dir <other>, to see how much of the accuracy is luck"
    if record["dataset"] == "digits":
        suggestion = "your own images: --data_dir <folder of class folders> --model convnet"
    fact("try next", suggestion)
