"""Comparing runs: their scores over seeds, their costs, and which differences are significant."""

import json
import math
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ftkit.errors import UserError, listed
from ftkit.evaluation import plots
from ftkit.evaluation.pages import write_pages
from ftkit.evaluation.predictions import read_predictions
from ftkit.evaluation.report import evaluation_folder, read_record
from ftkit.files import natural_sorted
from ftkit.places import all_shown
from ftkit.statistics.significance import ALPHA, holm
from ftkit.tasks import Task
from ftkit.training.checkpointing.output_folder import CHANGES_NOTHING

# The keys in which runs of one method may differ.
_SAME_METHOD = CHANGES_NOTHING | {"seed", "data_seed", "run_name"}
_LONGEST_NAME = 60
_EXAMPLES = 20  # images that two groups disagree on


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: the run's folder.
        record: the content of its `run.json`.
        config: its configuration; empty for an evaluation by `recipes/eval.py`.
        task: the model's task.
        images: (hash, target) of each test image, in the order of `scores`.
        scores: (N,), the score of each image; see `Task.score`.
        sources: the source of each image.
    """

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]
    task: Task
    images: list[tuple[int, str]]
    scores: np.ndarray
    sources: list[str]


@dataclass
class Group:
    """Runs of one method with different seeds, and the errors of those that failed."""

    name: str
    runs: list[Run]
    failures: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: the folder holds no finished run.
    """
    predictions, record = read_predictions(evaluation_folder(folder)), read_record(folder)
    saved = folder / "config.yaml"
    config = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    # Sorted by hash and class name, the order is the same in every run. The order of identical images does not matter.
    targets, scores = predictions.by_name(), predictions.scores()
    rows = sorted(zip(predictions.hashes.tolist(), targets, range(len(targets)), strict=True))
    images = [(hashed, target) for hashed, target, _ in rows]
    order = [row for *_, row in rows]
    sources = [predictions.sources[row] for row in order]
    return Run(folder, record, config, predictions.task, images, scores[order], sources)


def check_each_once(folders: list[Path]) -> None:
    """Check that no two of these paths lead to the same folder, links included.

    Raises:
        UserError: two paths lead to the same folder, whose run would count twice.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            raise UserError(f"{first} and {folder} are the same folder: name each run once")


def check_same_test(runs: list[Run]) -> None:
    """Check that all runs were tested on the same images with the same classes, in any order.

    Raises:
        UserError: the images or classes differ; the message gives the difference.
    """
    first = runs[0]
    for run in runs[1:]:
        between = f"{first.folder} and {run.folder} cannot be compared"
        if set(first.task.names) != set(run.task.names):
            raise UserError(f"{between}: the classes differ: {_difference(first.task.names, run.task.names)}")
        if first.images == run.images:
            continue
        mine, theirs = ({hashed for hashed, _ in images} for images in (first.images, run.images))
        if mine == theirs and len(first.images) == len(run.images):
            n = sum(a != b for a, b in zip(first.images, run.images, strict=True))
            raise UserError(f"{between}: {n:,} of the {len(first.images):,} test images have another label")
        raise UserError(
            f"{between}: the test images differ: {len(first.images):,} and {len(run.images):,}, "
            f"{len(mine & theirs):,} of them in both: run both with the same data, split_seed, test_size and "
            "max_test_samples"
        )


def _difference(first: list[str], second: list[str]) -> str:
    def some(names: set[str]) -> str:
        return listed(sorted(names)) or "none"

    return (
        f"{len(first)} and {len(second)}; only in the first: {some(set(first) - set(second))}; only in the second: "
        f"{some(set(second) - set(first))}"
    )


def group_runs(runs: list[Run]) -> list[Group]:
    """Group runs that differ only in their seed, and name each group by the settings that differ between groups."""
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
    own = {key: all_shown(run.config[key]) for key in apart if key in run.config}
    parts = [str(own.pop(key)) for key in ("method", "model") if key in own]
    return ", ".join(parts + [f"{key} {value}" for key, value in own.items()]) or run.record["method"]


def write_comparison(folder: Path, groups: list[Group]) -> dict[str, Any]:
    """Write `comparison.html`, `.md` and `.json` into a folder, and return the content of the page.

    Raises:
        UserError: a run is given twice, the test images or classes differ, or no run is finished.
    """
    runs = [run for group in groups for run in group.runs]
    if not runs:
        raise UserError("nothing to compare: no run is finished")
    check_each_once([run.folder for run in runs])
    check_same_test(runs)
    present = sorted((group for group in groups if group.runs), key=lambda group: -_scores(group).mean())
    task = runs[0].task
    rows = [_row(letter, group, task.score) for letter, group in zip(_letters(), present, strict=False)]
    pairs = _pairs(present, rows)
    absent = [{"name": group.name, "failures": group.failures} for group in groups if not group.runs]
    result = {"n": len(runs[0].images), "rows": rows, "failed": absent, "pairs": pairs}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (folder / "comparison.json").write_text(text, encoding="utf-8")
    fronts = [
        ("seconds of training", pareto_front(rows, "seconds", task.score)),
        ("trained parameters", pareto_front(rows, "trained_parameters", task.score)),
    ]
    costs = all(row["seconds"] is not None for row in rows)
    content = {
        **result,
        "dataset": runs[0].record["dataset"],
        "score": task.score,
        "title": task.score_metric.title,
        "plot": plots.pareto(rows, fronts, task.score, task.score_metric.title) if costs else None,
        "fronts": fronts if costs else [],
        "names": {row["letter"]: row["name"] for row in rows},
    }
    write_pages(folder, "comparison", content)
    return content


def _letters() -> list[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [*alphabet, *(first + second for first in alphabet for second in alphabet)]


def _scores(group: Group) -> np.ndarray:
    return np.array([run.scores.mean() for run in group.runs])


def _row(letter: str, group: Group, score: str) -> dict[str, Any]:
    records, scores = [run.record for run in group.runs], _scores(group)

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(values) else None

    seconds = [sum(stage["seconds"] for stage in r["stages"]) if "stages" in r else None for r in records]
    return {
        "letter": letter,
        "name": group.name,
        "runs": [str(run.folder) for run in group.runs],
        "seeds": [record.get("seed") for record in records],
        score: float(scores.mean()),
        "std": float(scores.std(ddof=1)) if len(scores) > 1 else None,
        "trained_parameters": mean([r["parameters"]["trained"] if "parameters" in r else None for r in records]),
        "seconds": mean(seconds),
        "peak_memory_mb": mean([max(r["peak_memory_mb"].values()) if "stages" in r else None for r in records]),
        "failures": group.failures,
    }


def _pairs(groups: list[Group], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A test for each pair of groups, the better one first, with p values corrected over all pairs (Holm)."""
    scores = [np.array([run.scores for run in group.runs]) for group in groups]
    pairs, compare = [], groups[0].runs[0].task.compare
    sources = groups[0].runs[0].sources
    for i, j in combinations(range(len(groups)), 2):
        apart = {"only_first": _always_better(scores[i], scores[j], sources),
                 "only_second": _always_better(scores[j], scores[i], sources)}  # fmt: skip
        letters = {"first": rows[i]["letter"], "second": rows[j]["letter"]}
        pairs.append({**letters, **compare(scores[j], scores[i]), **apart})
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_corrected"] = p
        # With equal scores, the first is not better than the second.
        pair["verdict"] = "better" if p < ALPHA and pair["difference"] > 0 else "not distinguishable"
    return pairs


def _always_better(scores: np.ndarray, others: np.ndarray, sources: list[str]) -> dict[str, Any]:
    """The images, `n` of them, on which each of these runs, (R, N), scores better than each of the others.

    `examples` has the sources of the first ones.
    """
    images = np.flatnonzero(scores.min(0) > others.max(0))
    return {"n": len(images), "examples": natural_sorted(sources[image] for image in images)[:_EXAMPLES]}


def pareto_front(rows: list[dict[str, Any]], cost: str, score: str) -> list[str]:
    """The letters of the rows whose `score` no other row reaches at the same cost or less, cheapest first."""
    front, best = [], -math.inf
    for row in sorted(rows, key=lambda row: (row[cost] or 0.0, -row[score])):
        if row[score] > best:
            front.append(row["letter"])
            best = row[score]
    return front


def as_text(result: dict[str, Any]) -> str:
    """The content of `write_comparison` for a terminal: a line per group and a line per pair."""
    width = max(len(row["name"]) for row in [*result["rows"], *result["failed"]])
    lines = [f"\n   {'':<{width}}  runs  {result['title']:<17}  trained parameters  seconds  peak MB"]
    for row in result["rows"]:
        spread = f" ± {row['std']:.4f}" if row["std"] is not None else ""
        costs = [f"{value:,.{digits}f}" if value is not None else "–" for value, digits in
                 ((row["trained_parameters"], 0), (row["seconds"], 1), (row["peak_memory_mb"], 0))]  # fmt: skip
        score = f"{row[result['score']]:.4f}{spread:<9}"
        lines.append(f"{row['letter']:<2} {row['name']:<{width}}  {len(row['runs']):>4}  {score}  "
                     f"{costs[0]:>20}  {costs[1]:>7}  {costs[2]:>7}")  # fmt: skip
    lines += [f"–  {row['name']:<{width}}     0  FAILED" for row in result["failed"]]
    lines.append("")
    names = {row["letter"]: row["name"] for row in result["rows"]}
    for pair in result["pairs"]:
        first, second = names[pair["first"]], names[pair["second"]]
        verdict = f"{first} is better than {second}"
        if pair["verdict"] != "better":
            verdict = f"{first} and {second} are not distinguishable"
        low, high = (100 * bound for bound in pair["interval"])
        lines.append(f"{verdict}: {100 * pair['difference']:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}, "
                     f"corrected p {pair['p_corrected']:.2g}")  # fmt: skip
    return "\n".join(lines)
