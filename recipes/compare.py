"""Compare runs, or the methods of a recipe over seeds: which one is better, by how much, and what it costs.

    python recipes/compare.py runs/a runs/b runs/c
    python recipes/compare.py --recipe recipes/cifar10/convnet_full.yaml --methods linear_probe,lora,full --seeds 5

The second line trains what is missing, goes on with what is unfinished, and marks what fails as FAILED. Further
`--key value` pairs go to each of its runs, and `--launch_config accelerate_configs/multi_gpu.yaml` launches them so.
A page, `comparison.html`, goes into `--output_dir`, as Markdown and JSON as well.
"""

import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ftkit.config.configuration import Config
from ftkit.config.entries import Entry, read_command_line
from ftkit.errors import ConfigError, UserError, nearest, user_errors
from ftkit.owners import parse_config
from ftkit.training.output_folder import changes

FINETUNE = Path(__file__).resolve().parent / "finetune.py"
KEYS = ("recipe", "methods", "seeds", "output_dir", "launch_config")


@dataclass
class Comparison:
    """What is to be compared: runs that are there, or methods of recipes over seeds."""

    runs: list[Path]
    recipes: list[Path]
    methods: list[str]
    seeds: int
    output_dir: Path
    launch_config: Path | None
    overrides: list[str]


@dataclass
class Job:
    """A run that a comparison needs: its arguments for finetune.py, and the error of a run that failed."""

    variant: str
    seed: int
    folder: Path
    arguments: list[str]
    config: Config = field(repr=False)
    failure: str | None = None


def parse_arguments(arguments: list[str]) -> Comparison:
    """Read the command line.

    Raises:
        UserError: something is missing, or contradicts something else.
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
            f"{', '.join(extra)}: is for runs that are still to be trained, with --recipe{nearest(key, KEYS)}"
        )
    seeds = own.get("seeds", ["1"])[0]
    if not seeds.isdecimal() or int(seeds) < 1:
        raise UserError(f"--seeds {seeds}: expected how many, such as --seeds 3")
    methods = [method for text in own.get("methods", []) for method in text.split(",") if method]
    if repeated := {method for method in methods if methods.count(method) > 1}:
        raise UserError(f"--methods names {', '.join(sorted(repeated))} twice")
    default = (
        Path("runs") / f"{'-'.join(recipe.stem for recipe in recipes)}-comparison"
        if recipes
        else Path("runs") / "comparison"
    )
    output_dir = Path(own.get("output_dir", [default])[0])
    launch = Path(own["launch_config"][0]) if "launch_config" in own else None
    overrides = [word for setting in others for word in (f"--{setting.key}", *setting.texts)]
    return Comparison(runs, recipes, methods, int(seeds), output_dir, launch, overrides)


def plan_jobs(comparison: Comparison) -> list[Job]:
    """Every run that is needed, each with a configuration that has been checked.

    Raises:
        ConfigError: with what is wrong in any of them.
        UserError: a folder holds a run of another configuration, or would be that of two runs.
    """
    jobs, errors = [], []
    for recipe, method in itertools.product(comparison.recipes, comparison.methods or [None]):
        parts = [recipe.stem] * (len(comparison.recipes) > 1 or method is None) + [method] * (method is not None)
        arguments = ["--config", str(recipe), *comparison.overrides, *(["--method", method] if method else [])]
        try:
            first = parse_config(arguments).training.seed
        except ConfigError as error:
            errors += [f"{'-'.join(parts)}: {problem}" for problem in error.errors]
            continue
        for seed in range(first, first + comparison.seeds):
            folder = comparison.output_dir / "-".join(parts) / f"seed-{seed}"
            own = [*arguments, "--seed", str(seed), "--output_dir", str(folder)]
            jobs.append(Job("-".join(parts), seed, folder, own, parse_config(own)))
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))
    folders: dict[Path, Job] = {}
    for job in jobs:
        if folders.setdefault(job.folder, job) is not job:
            recipes = ", ".join(map(str, comparison.recipes))
            raise UserError(f"--recipe {recipes}: two of them would train in the same folder, {job.folder}: name each "
                            "once, and give recipes of one name other names")  # fmt: skip
        if changed := changes(job.folder, job.config):
            told = "; ".join(changed[:5])
            raise UserError(f"{job.folder} holds a run of another configuration ({told}): give another --output_dir")
    return jobs


def train(job: Job, launch_config: Path | None) -> None:
    """Train one run in a process of its own, if it is not finished; its output goes into a log beside its folder."""
    if (job.folder / "run.json").is_file():
        return
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(launch_config)] if launch_config else []
    command = [sys.executable, *launcher, str(FINETUNE), *job.arguments]
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        last = text.rpartition("\nerror: ")[2] if "\nerror: " in text else text.rpartition("\n")[2]
        job.failure = f"seed {job.seed}: exit code {code}: {last} (see {log})"


def main(arguments: list[str]) -> None:
    """Compare as `arguments`, a command line without the program's name, say."""
    comparison = parse_arguments(arguments)
    jobs = plan_jobs(comparison)

    from ftkit.evaluation.comparing import Group, group_runs, read_run, write_comparison

    if comparison.runs:
        groups = group_runs([read_run(folder) for folder in comparison.runs])
    for number, job in enumerate(jobs, start=1):
        train(job, comparison.launch_config)
        state = f"FAILED: {job.failure}" if job.failure else "finished"
        print(f"{number}/{len(jobs)} {job.variant}, seed {job.seed}: {state}", flush=True)
    if jobs:
        variants: dict[str, Group] = {}
        for job in jobs:
            group = variants.setdefault(job.variant, Group(job.variant, []))
            if job.failure:
                group.failures.append(job.failure)
            else:
                group.runs.append(read_run(job.folder))
        groups = list(variants.values())

    result = write_comparison(comparison.output_dir, groups)
    show(result)
    print(f"\n{comparison.output_dir / 'comparison.html'}")
    if failed := [job for job in jobs if job.failure]:
        raise UserError(f"{len(failed)} of {len(jobs)} runs FAILED; the same command tries them again")


def show(result: dict) -> None:
    """The table and the pairs, on standard output."""
    width = max(len(row["name"]) for row in [*result["rows"], *result["failed"]])
    print(f"\n   {'':<{width}}  runs  {result['title']:<17}  trained parameters  seconds  peak MB")
    for row in result["rows"]:
        spread = f" ± {row['std']:.4f}" if row["std"] is not None else ""
        costs = [f"{value:,.{digits}f}" if value is not None else "–" for value, digits in
                 ((row["trained_parameters"], 0), (row["seconds"], 1), (row["peak_memory_mb"], 0))]  # fmt: skip
        score = row[result["score"]]
        print(f"{row['letter']:<2} {row['name']:<{width}}  {len(row['runs']):>4}  {score:.4f}{spread:<9}  "
              f"{costs[0]:>20}  {costs[1]:>7}  {costs[2]:>7}")  # fmt: skip
    for row in result["failed"]:
        print(f"–  {row['name']:<{width}}     0  FAILED")
    print()
    names = {row["letter"]: row["name"] for row in result["rows"]}
    for pair in result["pairs"]:
        first, second = names[pair["first"]], names[pair["second"]]
        verdict = f"{first} is better than {second}"
        if pair["verdict"] != "better":
            verdict = f"{first} and {second} are not distinguishable"
        low, high = (100 * bound for bound in pair["interval"])
        print(f"{verdict}: {100 * pair['difference']:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}, "
              f"corrected p {pair['p_corrected']:.2g}")  # fmt: skip


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
