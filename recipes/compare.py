"""Compare runs, or the methods of a recipe over seeds: which is better, by how much, and at what cost.

    python recipes/compare.py runs/a runs/b runs/c
    python recipes/compare.py --recipe recipes/cifar10/convnet_full.yaml --methods linear_probe,lora,full --seeds 5

The second line trains missing runs, resumes unfinished ones, and marks those that fail as FAILED. Other `--key value`
pairs go to each run, and `--launch_config accelerate_configs/multi_gpu.yaml` launches them on several GPUs. The result
is written to `--output_dir` as a page, `comparison.html`, and as Markdown and JSON.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ftkit.config.entries import Entry, read_command_line
from ftkit.errors import UserError, nearest, user_errors
from ftkit.evaluation.comparison_runs import plan_jobs, read_variants, train

FINETUNE = Path(__file__).resolve().parent / "finetune.py"
KEYS = ("recipe", "methods", "seeds", "output_dir", "launch_config")


@dataclass
class Comparison:
    """What to compare: existing runs, or methods of recipes over seeds."""

    runs: list[Path]
    recipes: list[Path]
    methods: list[str]
    seeds: int
    output_dir: Path
    launch_config: Path | None
    overrides: list[str]


def parse_arguments(arguments: list[str]) -> Comparison:
    """Read the command line.

    Raises:
        UserError: an option is missing or contradicts another.
    """
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        sys.exit(0)
    first = next((place for place, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    runs, settings = [Path(word) for word in arguments[:first]], read_command_line(arguments[first:])
    own: dict[str, list[str]] = {}
    others: list[Entry] = []
    for setting in settings:
        if setting.key in KEYS:
            if not setting.texts:
                raise UserError(f"--{setting.key} needs a value")
            own.setdefault(setting.key, []).extend(setting.texts)
        else:
            others.append(setting)
    for key in {"seeds", "output_dir", "launch_config"} & own.keys():
        if len(own[key]) != 1:
            raise UserError(f"--{key} takes one value, not {len(own[key])}: {' '.join(own[key])}")
    recipes = [Path(text) for text in own.get("recipe", [])]
    if bool(runs) == bool(recipes):
        raise UserError("give either the folders of runs, or --recipe with --methods and --seeds")
    if runs and (extra := [f"--{setting.key}" for setting in others] + [f"--{k}" for k in own if k != "output_dir"]):
        key = extra[0].removeprefix("--")
        raise UserError(
            f"{', '.join(extra)}: only applies to runs that --recipe trains{nearest(key, KEYS)}: leave it out"
        )
    seeds = own.get("seeds", ["1"])[0]
    if not seeds.isdecimal() or int(seeds) < 1:
        raise UserError(f"--seeds {seeds}: expected how many, such as --seeds 3")
    methods = [method for text in own.get("methods", []) for method in text.split(",") if method]
    if repeated := {method for method in methods if methods.count(method) > 1}:
        raise UserError(f"--methods names {', '.join(sorted(repeated))} twice")
    default = Path("runs") / "-".join([*(recipe.stem for recipe in recipes), "comparison"])
    output_dir = Path(own.get("output_dir", [default])[0])
    launch = Path(own["launch_config"][0]) if "launch_config" in own else None
    overrides = [word for setting in others for word in (f"--{setting.key}", *(setting.texts or []))]
    return Comparison(runs, recipes, methods, int(seeds), output_dir, launch, overrides)


def main(arguments: list[str]) -> None:
    """Compare; `arguments` is the command line without the program's name."""
    given = parse_arguments(arguments)
    jobs = plan_jobs(given.recipes, given.methods, given.seeds, given.output_dir, given.overrides)

    from ftkit.evaluation.comparing import as_text, group_runs, read_run, write_comparison

    for number, job in enumerate(jobs, start=1):
        train(job, FINETUNE, given.launch_config)
        state = f"FAILED: {job.failure}" if job.failure else "finished"
        print(f"{number}/{len(jobs)} {job.variant}, seed {job.seed}: {state}", flush=True)
    groups = read_variants(jobs) if jobs else group_runs([read_run(folder) for folder in given.runs])
    print(as_text(write_comparison(given.output_dir, groups)))
    print(f"\n{given.output_dir / 'comparison.html'}")
    if failed := [job for job in jobs if job.failure]:
        raise UserError(f"{len(failed)} of {len(jobs)} runs FAILED; the same command tries them again")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
