"""Results as data: a small JSON file in recipes/results/ for each measured line of the texts.

kind         what measures it: recipe, benchmark, export, gpu or sweep
command      the command, run once per seed or round; null if no command can repeat the result
recipe       the recipe that it belongs to, with `seeds`
after        {folder: command}: the runs that it starts from
what         what is measured, in words, for tables
numbers      by name: `values` of each seed or round, their `mean` and `std`, or `median`, and n; `values` is null
             if they were not kept
environment  versions, commit, hardware, threads; null if unknown
date         when it was measured
since        the commit that brought the number into the texts, if it is older than its file
definition   a hash of what the result depends on, see `definition`
stale        why it should be measured again, if a maintainer gives a reason
remark       a note for the head of the recipe; `alongside` is one for the seconds in a table
"""

import hashlib
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ftkit.files import atomic_write

REPO = Path(__file__).resolve().parents[2]
TESTS = ("gpu", "sweep")  # kinds of results that tests measure
SHOWN_VERSIONS = ("torch", "transformers", "timm", "peft")


def read_results(root: Path = REPO) -> dict[str, dict[str, Any]]:
    """All results by name, such as `digits/mlp` for recipes/results/digits/mlp.json."""
    folder = root / "recipes" / "results"
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.json")}
    return {name: json.loads(paths[name].read_text(encoding="utf-8")) for name in sorted(paths)}


def write_result(path: Path, record: dict[str, Any]) -> None:
    """Store a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def definition(name: str, record: dict[str, Any], root: Path = REPO) -> str:
    """A hash of what a result depends on: its commands and seeds, and the settings of the recipes that they name.

    Comments do not count, nor do the imports of a benchmark's module, nor ftkit's own code: otherwise every commit
    would make every result stale.
    """
    parts: list[Any] = [record["command"], record.get("seeds"), record.get("after")]
    recipes = re.findall(r"--config (recipes/\S+)", " ".join((record.get("after") or {}).values()))
    for recipe in filter(None, [record.get("recipe"), *recipes]):
        parts.append(yaml.safe_load((root / recipe).read_text(encoding="utf-8")))
    if record["kind"] == "benchmark":
        source = (root / "recipes" / f"{name}.py").read_text(encoding="utf-8")
        parts.append([line for line in source.splitlines() if not line.startswith(("import ", "from ", "#"))])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def stale(name: str, record: dict[str, Any], root: Path = REPO) -> str | None:
    """Why a result should be measured, or None if it is up to date."""
    if not record.get("numbers"):
        return "never measured"
    if record.get("stale"):
        return record["stale"]
    if "since" in record:
        return f"older than this file: in the texts since {record['since'][:7]}"
    if record["kind"] not in TESTS and record["definition"] != definition(name, record, root):
        return "its command, its seeds or the settings of its recipe changed"
    return None


def other_versions(record: dict[str, Any]) -> str:
    """The packages whose installed versions differ from the result's, in words; empty if none does."""
    measured = record["environment"]["versions"] or {}
    pairs = ((name, measured.get(name), version(name)) for name in SHOWN_VERSIONS)
    return ", ".join(f"{name} {old}, now {new}" for name, old, new in pairs if old not in (None, new))


def machine() -> dict[str, Any]:
    """The processor's name and the load average, which `ftkit.training.provenance.environment` leaves out."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {"cpu": cpu, "load": os.getloadavg()}
