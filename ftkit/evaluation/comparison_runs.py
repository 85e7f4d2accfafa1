"""The runs that a comparison of methods over seeds needs: planned, trained where they are missing, and read."""

import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.configuration import Config
from ftkit.errors import ConfigError, UserError
from ftkit.owners import parse_config
from ftkit.training.checkpointing.output_folder import changes

if TYPE_CHECKING:
    from ftkit.evaluation.comparing import Group


@dataclass
class Job:
    """A run that a comparison needs: its arguments for finetune.py, and the error of a run that failed."""

    variant: str
    seed: int
    folder: Path
    arguments: list[str]
    config: Config = field(repr=False)
    failure: str | None = None


def plan_jobs(
    recipes: list[Path], methods: list[str], seeds: int, output_dir: Path, overrides: list[str]
) -> list[Job]:
    """Every run that is needed, each with a configuration that has been checked.

    Args:
        methods: of every recipe; its own where there are none.
        seeds: how many, from the recipe's own on.
        output_dir: gets a folder for each run.
        overrides: further words of every run's command line.

    Raises:
        ConfigError: with what is wrong in any of them.
        UserError: a folder holds a run of another configuration, or would be that of two runs.
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
                            "once, and give recipes of one name other names")  # fmt: skip
        if changed := changes(job.folder, job.config):
            told = "; ".join(changed[:5])
            raise UserError(f"{job.folder} holds a run of another configuration ({told}): give another --output_dir")
    return jobs


def train(job: Job, script: Path, launch_config: Path | None) -> None:
    """Train one run in a process of its own, if it is not finished; its output goes into a log beside its folder.

    Args:
        script: recipes/finetune.py.
        launch_config: for `accelerate launch`; started without it where it is None.
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
    """The runs of `jobs` as groups, one for each variant, with the failures of those that failed."""
    from ftkit.evaluation.comparing import Group, read_run  # late: it loads the library of the plots

    variants: dict[str, Group] = {}
    for job in jobs:
        group = variants.setdefault(job.variant, Group(job.variant, []))
        if job.failure:
            group.failures.append(job.failure)
        else:
            group.runs.append(read_run(job.folder))
    return list(variants.values())
