"""Measure recipes over their seeds, and exports: run their commands and read what they stored."""

import datetime
import json
import os
import re
import shlex
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.command import run
from benchmarks.record import definition, machine

ENVIRONMENT_KEYS = ("python", "versions", "commit", "platform", "cpu_count", "threads", "gpus", "precision")
OLD_KEYS = ("since", "stale", "remark", "alongside", "definition")


def measure_recipe(name: str, record: dict[str, Any], root: Path) -> dict[str, Any]:
    """Run a recipe's command with each of its seeds; returns the result.

    The runs stay in runs/results/<name> until all are finished, so that an interrupted measurement resumes.
    """
    prepare(record, root)
    folder, found = root / "runs" / "results" / name, []
    for seed in record["seeds"]:
        place = folder / f"seed-{seed}"
        if not (place / "run.json").is_file():
            run(f"{within(record['command'], place)} --seed {seed}", place.with_suffix(".log"), root)
        found.append(numbers_of(place))
    numbers = {key: summary([each[key] for each in found]) for key in found[0]}
    if (load := os.getloadavg()[0]) > (os.cpu_count() or 1):  # accuracies do not depend on the load
        print(f"{name}: other work on the cores (load {load:.1f}): the seconds are left out")
        del numbers["training_seconds"]
    last = read(folder / f"seed-{record['seeds'][-1]}" / "run.json")
    shutil.rmtree(folder)
    return finished(name, record, numbers, last, root)


def measure_export(name: str, record: dict[str, Any], root: Path) -> dict[str, Any]:
    """Run an export's command; returns the result."""
    prepare(record, root)
    folder = root / "runs" / "results" / name
    run(f"{within(record['command'], folder)} --overwrite true", folder.with_suffix(".log"), root)
    measured = read(folder / "export.json")
    numbers = {}
    for file_format, row in measured["formats"].items():
        numbers[f"{file_format} accuracy"] = summary([row["accuracy"]])
        numbers[f"{file_format} milliseconds"] = summary([row["milliseconds"]["1"]["median"]])
    return finished(name, record, numbers, measured, root)


def prepare(record: dict[str, Any], root: Path) -> None:
    """Train the runs that a result starts from, unless they are finished."""
    for folder, command in (record.get("after") or {}).items():
        if not (root / folder / "run.json").is_file():
            run(within(command, root / folder), (root / folder).with_suffix(".log"), root)


def within(command: str, folder: Path) -> str:
    """A command with `folder` as its output folder."""
    return f"{re.sub(r' --output_dir [^ ]+', '', command)} --output_dir {shlex.quote(str(folder))}"


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def numbers_of(folder: Path) -> dict[str, float]:
    """The numbers of a finished run that texts show: accuracies, seconds and counts."""
    record, metrics = read(folder / "run.json"), read(folder / "evaluation" / "metrics.json")
    numbers = {"accuracy": record["test"]["accuracy"]}
    numbers |= {f"accuracy_{kind}": value for kind, value in metrics.get("test_time_accuracy", {}).items()}
    if len(record["stages"]) > 1:
        (stage,) = (folder / "stages").glob("0-*")
        history = read(stage / "trainer_state.json")["log_history"]
        if evaluated := [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]:
            numbers["first_stage"] = evaluated[-1]
    numbers["training_seconds"] = round(sum(stage["seconds"] for stage in record["stages"]), 2)
    numbers["trained_parameters"] = record["parameters"]["trained"]
    numbers["test_images"] = record["test"]["n"]
    return numbers


def summary(values: list[float]) -> dict[str, Any]:
    """A number of a result: the values of all seeds, their mean and standard deviation (n - 1)."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.mean(values), "std": std, "n": len(values)}


def finished(name: str, record: dict[str, Any], numbers: dict, measured: dict, root: Path) -> dict[str, Any]:
    """The result with its new numbers."""
    about = {key: value for key, value in record.items() if key not in OLD_KEYS}
    return about | {
        "numbers": numbers,
        "environment": {key: measured[key] for key in ENVIRONMENT_KEYS if key in measured} | machine(),
        "date": datetime.date.today().isoformat(),
        "definition": definition(name, about, root),
    }
