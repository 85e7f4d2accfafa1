"""The one strict loader of configurations.

A recipe is a flat YAML file; every key can be overridden on the command line by its own name. One `HfArgumentParser`
over ftkit's dataclasses and transformers' `TrainingArguments` reads both, so that types, choices and misspelt keys are
checked in one place. Names of methods, optimizers, … are checked by the modules that define them. All errors are
reported at once, before data or model are touched.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, NamedTuple, get_args, get_type_hints

from transformers import HfArgumentParser

from ftkit.config.arguments.data import DataArguments, OtherData
from ftkit.config.arguments.evaluation import EvaluationArguments
from ftkit.config.arguments.job import JobArguments
from ftkit.config.arguments.loss import LossArguments
from ftkit.config.arguments.method import MethodArguments
from ftkit.config.arguments.model import ModelArguments
from ftkit.config.arguments.training import (
    DEFAULTS,
    TrainingArguments,
    check_training,
    derived,
    derived_keys,
    in_stage,
)
from ftkit.config.configuration import Config, Evaluation
from ftkit.config.contradictions import check_together
from ftkit.config.entries import Entry, parse_entry, read_command_line, read_recipe
from ftkit.config.machine import check_machine, runs_on_cpu
from ftkit.config.training_fields import OF_THE_RUN, check_fields
from ftkit.config.which_data import find_local_data, same_data, without_other_data
from ftkit.errors import Advice, ConfigError, UserError, nearest
from ftkit.precision import decide_precision

GROUPS: Any = (DataArguments, ModelArguments, MethodArguments, LossArguments, JobArguments, TrainingArguments)
# The keys that say which images are read. What is done to them in training belongs to the hyperparameters.
_WHICH_IMAGES = {f.name for f in dataclasses.fields(DataArguments)} - {"augment", "image_transform"}
# Keys that take one text or several, though `HfArgumentParser` lets them take one.
_LISTS = frozenset(name for name, hint in get_type_hints(TrainingArguments).items() if "list[str]" in str(hint))
# Keys whose null means None; a null of other keys means the default. `report_to: null` would name a tracker.
_NULLABLE = frozenset(
    name
    for group in (*GROUPS, EvaluationArguments)
    for name, hint in get_type_hints(group).items()
    if NoneType in get_args(hint)
) - {"report_to", "output_dir"}


class Owners(NamedTuple):
    """Checks and defaults from the modules that define names.

    Attributes:
        check: function that returns the errors in the names of a run's or a stage's configuration, one sentence each.
            It skips values of a wrong type or form, which the loader reports.
        learning_rate: function from a method to its default learning rate.
        metric: the metric that chooses the checkpoint by default.
        names: the valid names of each key, for `--help`.
    """

    check: Callable[[Config], list[str]]
    learning_rate: Callable[[str], float]
    metric: str
    names: dict[str, Iterable[str]]


def read_config(arguments: list[str], owners: Owners, default_recipe: Path | None = None) -> Config:
    """Read `[--config recipe.yaml] [--key value …]` into a checked configuration.

    Args:
        arguments: the command line without the program's name.
        owners: checks and defaults of the names.
        default_recipe: the recipe to read without `--config`. Its hyperparameters belong to its data and its model: if
            the command line names data (`--dataset` or `--data_dir`), the recipe is left out; if it names a
            `--model`, all but the recipe's data.

    Raises:
        UserError: the recipe cannot be read.
        ConfigError: there are errors; lists every unknown key, wrong type, value out of range and contradiction.
    """
    errors: list[str] = []
    named = ". ".join(f"{key}: {', '.join(names)}" for key, names in owners.names.items())
    parser = HfArgumentParser(GROUPS, prog="finetune.py", epilog=f"Names that keys take: {named}.")
    overrides = read_command_line(arguments)
    _answer_help(parser, overrides)
    read = _read_values(parser, _with_recipe(overrides, default_recipe, errors), errors)
    precision, contradictions = decide_precision(read, runs_on_cpu(read))
    errors += contradictions + check_machine(read)
    data, model, method, loss, job = _build_checked(GROUPS[:-1], read, errors)
    given = {key: value for key, value in read.items() if key in DEFAULTS}
    values = DEFAULTS | derived(given) | _defaults(owners, data, model, method) | given | precision
    pushes, values["push_to_hub"] = bool(values["push_to_hub"]), False
    names = tuple(key for key in given if key not in derived_keys(values))
    unresolved: Any = SimpleNamespace(**values)
    config = Config(data, model, method, loss, job, unresolved, names, pushes)
    errors += _check(config, names, owners)
    errors += _check_stages(parser, config, owners, bool(errors))
    training = None if errors else _typed_training(values, errors)
    if training is None:
        raise ConfigError(errors)
    return dataclasses.replace(config, training=training)


def read_evaluation(arguments: list[str], check: Callable[[Evaluation], list[str]]) -> Evaluation:
    """Read the command line of an evaluation. For a model in a run's folder, the run's data are the default.

    If the command line names other data, the run's data keys do not apply, except `merge_similar_labels`.

    Args:
        arguments: the command line without the program's name.
        check: function that returns the errors in the names, as in `Owners`.

    Raises:
        ConfigError: there are errors; lists all of them.
    """
    errors: list[str] = []
    overrides = read_command_line(arguments)
    groups: Any = (DataArguments, EvaluationArguments)
    parser = HfArgumentParser(groups, prog="eval.py")
    _answer_help(parser, overrides)
    keys = {f.name for f in dataclasses.fields(DataArguments)}
    model = next((entry.shown for entry in overrides if entry.key == "model"), None)
    if model is None:
        raise ConfigError(["model is missing: give --model a folder or a name on the Hub"])
    saved = [path for path in (Path(model) / "config.yaml", Path(model).parent / "config.yaml") if path.is_file()]
    recipe = [entry for entry in read_recipe(saved[0], errors) if entry.key in keys] if saved else []
    own_data = bool(recipe) and same_data(recipe, overrides)
    if not own_data:
        recipe = [entry for entry in recipe if entry.key == "merge_similar_labels"]
    values = _read_values(parser, recipe + overrides, errors)
    data, evaluation = _build_checked((DataArguments if own_data else OtherData, EvaluationArguments), values, errors)
    config = Evaluation(data, evaluation, own_data)
    errors += check(config) + check_machine(values, takes_use_cpu=False)
    if errors:
        raise ConfigError(errors)
    return config


def _answer_help(parser: HfArgumentParser, entries: list[Entry]) -> None:
    if "help" in {entry.key for entry in entries}:
        parser.print_help()
        sys.exit(0)


def _with_recipe(overrides: list[Entry], default_recipe: Path | None, errors: list[str]) -> list[Entry]:
    """The entries of the recipe, which the command line or the default names, then those of the command line."""
    chosen = [entry for entry in overrides if entry.key == "config"]
    overrides = [entry for entry in overrides if entry.key != "config"]
    if len(chosen) > 1 or any(len(entry.texts or []) != 1 for entry in chosen):
        raise UserError("--config takes one recipe, such as --config recipes/mnist/mlp.yaml")
    path = Path(chosen[0].shown) if chosen else default_recipe
    recipe = read_recipe(path, errors) if path else []
    named = {entry.key: entry.shown for entry in overrides}
    if chosen:
        recipe = without_other_data(recipe, named)
    elif {"dataset", "data_dir"} & named.keys():
        recipe = []
    elif "model" in named:
        recipe = [entry for entry in recipe if entry.key in _WHICH_IMAGES]
    return recipe + overrides


def _read_values(parser: HfArgumentParser, entries: list[Entry], errors: list[str]) -> dict[str, Any]:
    """Typed values by key; later entries override earlier ones, and errors are appended to `errors`."""
    values: dict[str, Any] = {}
    for entry in entries:
        try:
            values |= parse_entry(parser, entry, _LISTS, _NULLABLE)
        except ValueError as error:
            errors.append(f"{entry.origin}: {error}")
    find_local_data(values)
    if values.get("resume_from_checkpoint") is not None:
        resume = str(values["resume_from_checkpoint"])
        if resume.lower() in ("auto", "true", "false"):
            values["resume_from_checkpoint"] = resume.lower()
        elif not os.path.isdir(resume):
            errors.append(f"resume_from_checkpoint: {resume} is not a folder: give a checkpoint, auto, true or false")
    if not values.get("dataset") and not values.get("data_dir"):
        errors.append("dataset and data_dir are both missing: name a dataset, or a folder of images")
    return values


def _build_checked(groups: tuple[type, ...], values: dict[str, Any], errors: list[str]) -> list[Any]:
    """The dataclasses with their values; their errors are appended to `errors`."""
    built = []
    for group in groups:
        names = {f.name for f in dataclasses.fields(group)}
        built.append(group(**{key: value for key, value in values.items() if key in names}))
        errors += built[-1].check()
    return built


def _defaults(owners: Owners, data: DataArguments, model: ModelArguments, method: MethodArguments) -> dict[str, Any]:
    """The training arguments whose defaults depend on data, task, model and method."""
    parts = [data.dataset or Path(data.data_dir or "").name, model.model, method.method]
    slug = "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts)
    return {
        "learning_rate": owners.learning_rate(method.method),
        "metric_for_best_model": owners.metric,
        "output_dir": str(Path("runs") / slug),
    }


def _check(config: Config, own: Iterable[str], owners: Owners) -> list[str]:
    """The errors in the training arguments and the names of a run, or of a stage with its training arguments.

    Args:
        own: the training arguments that the run, or the stage, sets.
    """
    values = vars(config.training)
    return check_training(values) + check_fields(values, own) + check_together(config) + owners.check(config)


def _check_stages(parser: HfArgumentParser, config: Config, owners: Owners, known: bool) -> list[str]:
    """Convert the training arguments of the stages to their types; returns the errors.

    Args:
        known: whether the run has errors, which its stages would repeat.
    """
    stages = config.method.stages if isinstance(config.method.stages, list) else []
    errors: list[str] = []
    for number, stage in enumerate(stages):
        if isinstance(stage, dict):
            _type_stage(parser, f"stages[{number}]", stage, errors)
    for number, stage in enumerate([] if known or errors else stages):
        arguments = {key: value for key, value in stage.items() if key not in ("name", "train")}
        own = in_stage(vars(config.training), config.given, arguments)
        unresolved: Any = SimpleNamespace(**own)
        wrong = _check(dataclasses.replace(config, training=unresolved), arguments, owners)
        wrong or _typed_training(own, wrong)
        for error in wrong:
            message = f"stages[{number}]: {error}"
            fix = config.method.in_stage(number, error.fix) if isinstance(error, Advice) else None
            errors.append(Advice(message, fix) if fix else message)
    return errors


def _type_stage(parser: HfArgumentParser, where: str, stage: dict[str, Any], errors: list[str]) -> None:
    """Convert the training arguments of a stage to their types, as those of the run."""
    for key in [key for key in stage if key not in ("name", "train")]:
        if key in OF_THE_RUN:
            errors.append(f"{where}: {key} applies to the whole run: move it out of stages")
        elif key not in DEFAULTS:
            hint = nearest(key, sorted(DEFAULTS.keys() - OF_THE_RUN))
            errors.append(f"{where}: {key} is not a training argument of a stage{hint}")
        else:
            value = stage.pop(key)
            texts = None if value is None else [_as_text(value)]
            try:
                stage |= parse_entry(parser, Entry(key, texts, where), _LISTS, _NULLABLE)
            except ValueError as error:
                errors.append(f"{where}: {error}")


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)


def _typed_training(values: dict[str, Any], errors: list[str]) -> TrainingArguments | None:
    """The training arguments; None, with one more error, if transformers refuses them."""
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        errors.append(" ".join(str(error).split()))
        return None
