"""List and measure the results that README, guides and recipes show, and write them into these texts.

    python recipes/results.py --list
    python recipes/results.py --measure digits/mlp benchmarks/mnist_mlp
    python recipes/results.py --write

Each result is a JSON file in recipes/results/. `--list` shows which are stale, and why. `--measure` runs the commands
of the named results, or of all that are missing or stale; `--seeds` gives the seeds for a recipe without a result.
`--write` writes all results into the texts. recipes/guides/contributing.md has the details.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import REPO, TESTS, other_versions, read_results, stale, write_result
from benchmarks.texts import rendered, texts

from ftkit.config.scripts import ScriptParser
from ftkit.errors import UserError, nearest, user_errors


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line of this script."""
    parser = ScriptParser(prog="results.py", description="List, measure and write the results in the texts.")
    parser.add_argument("--list", action="store_true", help="show whether each result is up to date")
    parser.add_argument("--measure", nargs="*", metavar="NAME", help="measure these, or all missing and stale results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="for a recipe without a result")
    parser.add_argument("--write", action="store_true", help="write the results into the texts")
    args = parser.parse_args(arguments)
    if not args.list and args.measure is None and not args.write:
        raise UserError("nothing to do: give --list, --measure or --write")
    return args


def recipes(root: Path) -> list[str]:
    """The names of all recipes, such as `digits/mlp`."""
    folder = root / "recipes"
    return [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.glob("*/*.yaml"))]


def show_list(results: dict[str, dict[str, Any]], root: Path) -> None:
    """Print a line for each result, and for each recipe without one."""
    shown = {record.get("recipe") for record in results.values()}
    for name in recipes(root):
        if f"recipes/{name}.yaml" not in shown:
            print(f"{name:<44} missing")
    for name, record in results.items():
        why = stale(name, record, root)
        versions = other_versions(record)
        state = f"stale: {why}" if why else f"measured {record['date']}, {record['environment']['commit'][:7]}"
        print(f"{name:<44} {state}{f' ({versions})' if versions else ''}")


def measurable(record: dict[str, Any]) -> bool:
    """Whether a command can measure the result on any machine."""
    return record["command"] is not None and record["kind"] not in TESTS


def measure(name: str, results: dict[str, dict[str, Any]], seeds: list[int], root: Path) -> dict[str, Any]:
    """Measure one result again, or a recipe for the first time."""
    from benchmark import measure_row
    from benchmark import parse_arguments as benchmark_arguments
    from benchmarks.trained import measure_export, measure_recipe

    new = {"kind": "recipe", "command": f"accelerate launch recipes/finetune.py --config recipes/{name}.yaml",
           "recipe": f"recipes/{name}.yaml", "seeds": seeds, "what": ""}  # fmt: skip
    record = results.get(name, new)
    if not measurable(record):
        raise UserError(f"{name} cannot be measured here: {record.get('remark') or record['command']}")
    if record["kind"] == "benchmark":
        row = name.removeprefix("benchmarks/")
        return measure_row(row, benchmark_arguments(["--rows", row]))
    return {"recipe": measure_recipe, "export": measure_export}[record["kind"]](name, record, root)


def main(arguments: list[str], root: Path = REPO) -> None:
    """List, measure or write the results of `root`; `arguments` is the command line without the program's name."""
    args = parse_arguments(arguments)
    results = read_results(root)
    if args.list:
        show_list(results, root)
    known = list(dict.fromkeys([*results, *recipes(root)]))
    for name in args.measure or []:
        if name not in known:
            raise UserError(f"--measure {name}: there is no such result or recipe{nearest(name, known)}")
    if args.measure is not None:
        from ftkit.training.provenance import git_commit

        commit = git_commit()  # now: writing the first result changes the checkout
        outdated = [name for name, record in results.items() if measurable(record) and stale(name, record, root)]
        for name in args.measure or [*(name for name in known if name not in results), *outdated]:
            print(f"measuring {name}", flush=True)
            record = measure(name, results, args.seeds, root)
            record["environment"]["commit"] = commit
            write_result(root / "recipes" / "results" / f"{name}.json", record)
        results = read_results(root)
    if args.write:
        measured = {name: record for name, record in results.items() if record.get("numbers")}
        for path in texts(root):
            text = rendered(path, measured, root)
            if text != path.read_text(encoding="utf-8"):
                path.write_text(text, encoding="utf-8")
                print(f"written: {path.relative_to(root)}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
