"""Runs side by side: accuracy over seeds, cost, and which differences are more than luck."""

import json
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ftkit.errors import UserError
from ftkit.evaluation import plots
from ftkit.evaluation.pages import write_pages
from ftkit.evaluation.predictions import read_predictions
from ftkit.evaluation.report import evaluation_folder, read_record
from ftkit.statistics.significance import ALPHA, compare, holm
from ftkit.training.output_folder import CHANGES_NOTHING

# What of a configuration does not make another method of it.
_SAME_METHOD = CHANGES_NOTHING | {"seed", "data_seed", "run_name"}
_LONGEST_NAME = 60


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        record: its `run.json`.
        config: its configuration, empty for what `recipes/eval.py` wrote.
        class_names: of the model.
        images: (hash, true class) of each test image, in the order of `hits`.
        hits: bool (N,), whether the prediction is right.
    """

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]
    class_names: list[str]
    images: list[tuple[int, str]]
    hits: np.ndarray


@dataclass
class Group:
    """Runs of one method that differ in their seed, and the errors of those that failed."""

    name: str
    runs: list[Run]
    failures: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: it is none.
    """
    predictions, record = read_predictions(evaluation_folder(folder)), read_record(folder)
    saved = folder / "config.yaml"
    config = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    # The order of hashes and names is the same in every run. Twins have the same pixels, so theirs does not matter.
    names = [predictions.class_names[label] for label in predictions.labels]
    rows = sorted(zip(predictions.hashes.tolist(), names, range(len(names)), strict=True))
    images = [(hashed, name) for hashed, name, _ in rows]
    return Run(folder, record, config, predictions.class_names, images, predictions.hits[[row for *_, row in rows]])


def check_each_once(folders: list[Path]) -> None:
    """That no two of these paths lead to the same folder, by whatever names and links.

    Raises:
        UserError: a run would count twice.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            raise UserError(f"{first} and {folder} are the same folder: name each run once")


def check_same_test(runs: list[Run]) -> None:
    """That all runs were tested on the same images with the same classes, whatever their numbers.

    Raises:
        UserError: with what differs.
    """
    first = runs[0]
    for run in runs[1:]:
        between = f"{first.folder} and {run.folder} cannot be compared"
        if set(first.class_names) != set(run.class_names):
            raise UserError(f"{between}: the classes differ: {_difference(first.class_names, run.class_names)}")
        if first.images == run.images:
            continue
        mine, theirs = ({hashed for hashed, _ in images} for images in (first.images, run.images))
        if mine == theirs and len(first.images) == len(run.images):
            n = sum(a != b for a, b in zip(first.images, run.images, strict=True))
            raise UserError(f"{between}: {n:,} of the {len(first.images):,} test images have another label")
        raise UserError(
            f"{between}: the test images differ: {len(first.images):,} and {len(run.images):,}, of which "
            f"{len(mine & theirs):,} are in both: give both the same data, split_seed and test_size"
        )


def _difference(first: list[str], second: list[str]) -> str:
    def some(names: set[str]) -> str:
        return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "") or "none"

    return (
        f"{len(first)} and {len(second)}; only in the first: {some(set(first) - set(second))}; only in the second: "
        f"{some(set(second) - set(first))}"
    )


def group_runs(runs: list[Run]) -> list[Group]:
    """Runs that differ in their seed alone, together; each group named by what sets it apart from the others."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if key not in _SAME_METHOD}
        key = json.dumps(own, sort_keys=True, default=str) if run.config else str(run.folder)
        groups.setdefault(key, []).append(run)
    configs = [members[0].config for members in groups.values()]
    keys = sorted(set().union(*configs) - _SAME_METHOD)
    apart = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    names = [_name(members[0], apart) for members in groups.values()]
    if len(set(names)) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        names = [str(members[0].folder) for members in groups.values()]
    return [Group(name, members) for name, members in zip(names, groups.values(), strict=True)]


def _name(run: Run, apart: list[str]) -> str:
    if not run.config:
        return str(run.folder)
    told = {key: run.config[key] for key in apart if key in run.config}
    parts = [str(told.pop(key)) for key in ("method", "model") if key in told]
    return ", ".join(parts + [f"{key} {value}" for key, value in told.items()]) or run.record["method"]


def write_comparison(folder: Path, groups: list[Group]) -> dict[str, Any]:
    """Write `comparison.html`, `.md` and `.json` into a folder, and return what they say.

    Raises:
        UserError: a run stands there twice, the runs were not tested on the same images and classes, or none is
            finished.
    """
    runs = [run for group in groups for run in group.runs]
    if not runs:
        raise UserError("no run is finished: there is nothing to compare")
    check_each_once([run.folder for run in runs])
    check_same_test(runs)
    present = sorted((group for group in groups if group.runs), key=lambda group: -_accuracies(group).mean())
    rows = [_row(letter, group) for letter, group in zip(_letters(), present, strict=False)]
    pairs = _pairs(present, rows)
    absent = [{"name": group.name, "failures": group.failures} for group in groups if not group.runs]
    result = {"n": len(runs[0].images), "rows": rows, "failed": absent, "pairs": pairs}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (folder / "comparison.json").write_text(text, encoding="utf-8")
    fronts = [
        ("seconds of training", pareto_front(rows, "seconds")),
        ("parameters trained", pareto_front(rows, "trained_parameters")),
    ]
    costs = all(row["seconds"] is not None for row in rows)
    content = {
        **result,
        "dataset": runs[0].record["dataset"],
        "plot": plots.pareto(rows, fronts) if costs else None,
        "fronts": fronts if costs else [],
        "names": {row["letter"]: row["name"] for row in rows},
    }
    write_pages(folder, "comparison", content)
    return result


def _letters():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [*alphabet, *(first + second for first in alphabet for second in alphabet)]


def _accuracies(group: Group) -> np.ndarray:
    return np.array([run.hits.mean() for run in group.runs])


def _row(letter: str, group: Group) -> dict[str, Any]:
    records, accuracies = [run.record for run in group.runs], _accuracies(group)

    def mean(values: list[float | None]) -> float | None:
        return None if None in values else float(np.mean(values))

    seconds = [sum(stage["seconds"] for stage in r["stages"]) if "stages" in r else None for r in records]
    return {
        "letter": letter,
        "name": group.name,
        "runs": [str(run.folder) for run in group.runs],
        "seeds": [record.get("seed") for record in records],
        "accuracy": float(accuracies.mean()),
        "std": float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None,
        "trained_parameters": mean([r["parameters"]["trained"] if "parameters" in r else None for r in records]),
        "seconds": mean(seconds),
        "peak_memory_mb": mean([max(r["peak_memory_mb"].values()) if "stages" in r else None for r in records]),
        "failures": group.failures,
    }


def _pairs(groups: list[Group], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pair of groups, the better one first; a winner is one after Holm's correction over all pairs."""
    hits = [np.array([run.hits for run in group.runs]) for group in groups]
    pairs = []
    for i, j in combinations(range(len(groups)), 2):
        pairs.append({"first": rows[i]["letter"], "second": rows[j]["letter"], **compare(hits[j], hits[i])})
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_corrected"] = p
        # A first that is not better may only be ahead of its second by the order of equals.
        pair["verdict"] = "better" if p < ALPHA and pair["difference"] > 0 else "not distinguishable"
    return pairs


def pareto_front(rows: list[dict[str, Any]], cost: str) -> list[str]:
    """The letters of the rows that no other one beats in accuracy at the same cost or less, cheapest first."""
    front, best = [], -1.0
    for row in sorted(rows, key=lambda row: (row[cost] or 0.0, -row["accuracy"])):
        if row["accuracy"] > best:
            front.append(row["letter"])
            best = row["accuracy"]
    return front
