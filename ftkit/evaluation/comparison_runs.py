"""The runs of a comparison of methods over seeds: planning them, training the missing ones, reading them."""

import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.configuration import Config
from ftkit.errors import ConfigError, UserError, listed
from ftkit.owners import parse_config
from ftkit.training.checkpointing.output_folder import changes

if TYPE_CHECKING:
    from ftkit.evaluation.comparing import Group


@dataclass
class Job:
    """A run of a comparison: its arguments for finetune.py, and its error if it failed."""

    variant: str
    seed: int
    folder: Path
    arguments: list[str]
    config: Config = field(repr=False)
    failure: str | None = None


def plan_jobs(
    recipes: list[Path], methods: list[str], seeds: int, output_dir: Path, overrides: list[str]
) -> list[Job]:
    """All runs of a comparison, with checked configurations.

    Args:
        methods: the methods to run each recipe with; if empty, the recipe's own.
        seeds: number of seeds, counted up from the recipe's own.
        output_dir: the folder that gets a folder for each run.
        overrides: further command-line arguments of every run.

    Raises:
        ConfigError: a configuration has errors; lists all errors of all configurations.
        UserError: a folder holds a run of another configuration, or two runs would share a folder.
    """
    jobs, errors = [], []
    for recipe, method in itertools.product(recipes, methods or [""]):
        parts = [recipe.stem] * (len(recipes) > 1 or not method) + [method] * bool(method)
        arguments = ["--config", str(recipe), *overrides, *(["--method", method] if method else [])]
        try:
            first = parse_config(arguments).training.seed
        except ConfigError as error:
            errors += [f"{'-'.join(parts)}: {problem}" for problem in error.errors]
            continue
        for seed in range(first, first + seeds):
            folder = output_dir / "-".join(parts) / f"seed-{seed}"
            own = [*arguments, "--seed", str(seed), "--output_dir", str(folder)]
            jobs.append(Job("-".join(parts), seed, folder, own, parse_config(own)))
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))
    folders: dict[Path, Job] = {}
    for job in jobs:
        if folders.setdefault(job.folder, job) is not job:
            named = ", ".join(map(str, recipes))
            raise UserError(f"--recipe {named}: two of them would train in the same folder, {job.folder}: name each "
                            "recipe once, and rename recipes that share a file name")  # fmt: skip
        if changed := changes(job.folder, job.config):
            differs = listed(changed, between="; ")
            raise UserError(
                f"{job.folder} holds a run of another configuration ({differs}): give another --output_dir"
            )
    return jobs


def train(job: Job, script: Path, launch_config: Path | None) -> None:
    """Train a run in its own process, unless it is finished; its output goes into a log beside its folder.

    Args:
        script: the path of recipes/finetune.py.
        launch_config: the file for `accelerate launch`; without one, plain Python runs the script.
    """
    if (job.folder / "run.json").is_file():
        return
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(launch_config)] if launch_config else []
    command = [sys.executable, *launcher, str(script), *job.arguments]
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        last = text.rpartition("\nerror: ")[2] if "\nerror: " in text else text.rpartition("\n")[2]
        job.failure = f"seed {job.seed}: exit code {code}: {last} (see {log})"


def read_variants(jobs: list[Job]) -> "list[Group]":
    """The runs of `jobs`, grouped by variant, with the errors of those that failed."""
    from ftkit.evaluation.comparing import Group, read_run  # late: it loads matplotlib

    variants: dict[str, Group] = {}
    for job in jobs:
        group = variants.setdefault(job.variant, Group(job.variant, []))
        if job.failure:
            group.failures.append(job.failure)
        else:
            group.runs.append(read_run(job.folder))
    return list(variants.values())
