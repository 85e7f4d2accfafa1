"""The configuration of a run, and the one strict loader.

A recipe is a flat YAML file; every key can be overridden on the command line by its own name. Both are turned into
arguments and read by one `HfArgumentParser` over ftkit's dataclasses and transformers'
`TrainingArguments`, so that a type, a choice or a misspelt key is judged in one place. All errors are reported at
once, before data or model are touched.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from ftkit.config import (
    OWN_MODELS,
    DataArguments,
    EvaluationArguments,
    JobArguments,
    LossArguments,
    MethodArguments,
    ModelArguments,
    weights_file,
)
from ftkit.config.data import EMBEDDED
from ftkit.config.entries import Entry, parse_entry, read_command_line, read_recipe
from ftkit.config.machine import check_machine
from ftkit.config.method import PLANS, default_learning_rate
from ftkit.config.training import TrainingArguments, check_training, machine_defaults, sharding_of
from ftkit.config.training_fields import OF_THE_RUN, check_fields
from ftkit.errors import ConfigError, UserError, nearest
from ftkit.precision import decide_precision, deepspeed_config

GROUPS = (DataArguments, ModelArguments, MethodArguments, LossArguments, JobArguments, TrainingArguments)
_TRAINING = frozenset(f.name for f in dataclasses.fields(TrainingArguments))
# Keys that take one text or several; `HfArgumentParser` knows them as one.
_LISTS = frozenset(name for name, hint in get_type_hints(TrainingArguments).items() if "list[str]" in str(hint))
# Keys for which null is a value; of others it leaves the default. `report_to: null` would be a tracker of that name.
_NULLABLE = frozenset(
    name
    for group in (*GROUPS, EvaluationArguments)
    for name, hint in get_type_hints(group).items()
    if NoneType in get_args(hint)
) - {"report_to", "output_dir"}
# What ftkit sets of `TrainingArguments` by other keys.
_FOLLOWING = ("eval_steps", "save_strategy", "save_steps", "load_best_model_at_end", "metric_for_best_model")
# How a run is started and where it left off: these do not belong to what a run is.
_NOT_SAVED = ("overwrite", "resume_from_checkpoint")


@dataclass
class Config:
    """A checked configuration. `values` is what the recipe, the command line and ftkit's defaults say, by key."""

    data: DataArguments
    model: ModelArguments
    method: MethodArguments
    loss: LossArguments
    job: JobArguments
    training: TrainingArguments
    values: dict[str, Any]

    @property
    def pushes(self) -> bool:
        """Whether the finished model goes to the Hub."""
        return bool(self.values.get("push_to_hub"))

    def of_stage(self, arguments: dict[str, Any], folder: Path) -> TrainingArguments:
        """The training arguments of a stage: those of a run that has these keys too, and what was set since.

        Args:
            arguments: what the stage says.
            folder: the stage's.
        """
        own, read = _training(_in_stage(self.values, arguments)), _training(self.values)
        for name in _TRAINING - arguments.keys():
            if (now := getattr(self.training, name)) != getattr(read, name):
                setattr(own, name, now)
        own.output_dir = str(folder)
        return own

    def to_yaml(self) -> str:
        """The resolved configuration as a recipe: running it again repeats the run."""
        own = {}
        for group in (self.data, self.model, self.method, self.loss, self.job):
            own |= {k: v for k, v in dataclasses.asdict(group).items() if v is not None}
        training = {k: v for k, v in self.values.items() if k in _TRAINING}
        resolved = {k: v for k, v in (own | training).items() if k not in _NOT_SAVED}
        return yaml.safe_dump(_plain(resolved), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Enums as their values, so that YAML's safe dumper takes them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return getattr(value, "value", value)


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """`values` over what ftkit sets of `TrainingArguments`: evaluate each epoch, keep the best checkpoint."""
    defaults: dict[str, Any] = {
        "eval_strategy": "steps" if values.get("eval_steps") else "epoch",
        "per_device_eval_batch_size": 256,
        "logging_steps": 50,
        "save_total_limit": 1,
        "learning_rate": default_learning_rate(values.get("method", MethodArguments.method)),
    }
    strategy = values.get("eval_strategy", defaults["eval_strategy"])
    defaults["save_strategy"] = "epoch" if strategy == "no" else strategy
    if strategy == "steps":
        defaults["eval_steps"] = values.get("logging_steps", defaults["logging_steps"])
        defaults["save_steps"] = values.get("eval_steps") or defaults["eval_steps"]
    if strategy != "no":
        defaults |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    data = values.get("dataset") or Path(values.get("data_dir") or "").name
    parts = [data, values.get("model", ModelArguments.model), values.get("method", MethodArguments.method)]
    slug = "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts)
    defaults["output_dir"] = str(Path("runs") / slug)
    return defaults | values


def _in_stage(values: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The values of a run for a stage with `arguments`: what follows from others of them follows from these."""
    usual = _defaults({key: value for key, value in values.items() if key not in _FOLLOWING})
    own = {key: value for key, value in values.items() if key not in _FOLLOWING or value != usual.get(key)}
    if "num_train_epochs" in arguments:
        own.pop("max_steps", None)  # which would win over it
    return _defaults(own | arguments)


def _training(values: dict[str, Any]) -> TrainingArguments:
    """transformers' arguments of these values, on this machine."""
    # The `Trainer` would push at every checkpoint; ftkit pushes once, when the run is done and has been checked.
    once = machine_defaults() | values | {"push_to_hub": False}
    return TrainingArguments(**{key: value for key, value in once.items() if key in _TRAINING})


def _check_together(values: dict[str, Any]) -> list[str]:
    """Keys of different groups that contradict each other."""
    errors = []
    model, method = values.get("model", ModelArguments.model), values.get("method", MethodArguments.method)
    if method != "scratch" and model in OWN_MODELS:
        errors.append(
            f"method: {method} starts from trained weights, and model: {model} has none: use method: scratch, or give "
            "the folder of a trained model"
        )
    if method == "scratch" and weights_file(model) is not None:
        errors.append(f"method: scratch starts from random weights, and {model} holds trained ones: use another")
    if weights_file(model) is not None and method not in PLANS and not values.get("merge_adapters"):
        errors.append(f"merge_adapters: an adapter cannot name {model} as what it belongs to: set it to true")
    if values.get("early_stopping_patience") is not None and not values.get("load_best_model_at_end"):
        errors.append(
            "early_stopping_patience needs load_best_model_at_end: true and an eval_strategy: without them the "
            "stopped run would keep a worse model than its best"
        )
    if method == "adalora" and values.get("ema_decay") is not None:
        errors.append(
            f"ema_decay: {values['ema_decay']} brings back ranks that adalora has given away: leave it out, or use "
            "method: lora"
        )
    if values.get("save_only_model") and values.get("on_nan") == "rollback":
        errors.append(
            "on_nan: rollback goes back to the optimizer of a checkpoint, which save_only_model: true leaves out: use "
            "on_nan: skip, or leave save_only_model out"
        )
    return errors + _check_sharded(values)


def _check_sharded(values: dict[str, Any]) -> list[str]:
    """What looks at whole weights while they train, where FSDP or DeepSpeed have them in pieces."""
    if not sharding_of(values):
        return []
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and (key := next(filter(values.get, ("fsdp", "deepspeed")), None)):
        return [
            f"{key}: {values[key]} cuts a model into pieces for several processes, and this is one: leave it out, or "
            f"launch several, with accelerate_configs/{'fsdp' if key == 'fsdp' else 'deepspeed_zero2'}.yaml"
        ]
    if len(kinds := sharding_of(values)) > 1:
        return [f"{' and '.join(kinds)} each cut a model into pieces: keep one of them"]
    source, pieces = deepspeed_config(values)
    if own := [key for key in ("optimizer", "scheduler") if key in pieces]:
        keys = {"optimizer": "optim, learning_rate and weight_decay", "scheduler": "lr_scheduler_type"}
        return [f"{source}: its {key} would be ignored: remove it there, and set {keys[key]}" for key in own]
    whole = {"ema_decay": None, "l1": 0.0, "auto_find_batch_size": False, "on_nan": "stop"}
    errors = [f"{key}: {values[key]}" for key, usual in whole.items() if values.get(key, usual) != usual]
    errors += ["method: adalora"] if values.get("method") == "adalora" else []
    why = "needs whole weights, which FSDP and DeepSpeed cut into pieces"
    return [f"{error} {why}: leave it out, or launch with accelerate_configs/multi_gpu.yaml" for error in errors]


def _read_values(parser: HfArgumentParser, entries: list[Entry], errors: list[str]) -> dict[str, Any]:
    """Typed values by key, later entries over earlier ones; what is wrong with any of them goes to `errors`."""
    values = {}
    for entry in entries:
        try:
            values |= parse_entry(parser, entry, _LISTS, _NULLABLE)
        except ValueError as error:
            errors.append(f"{entry.origin}: {error}")
    _find_local_data(values)
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
    built = [_build(group, values, errors) for group in groups]
    for group in built:
        errors += group.check() if group is not None else []
    return built


def parse_config(arguments: list[str], default_recipe: Path | None = None) -> Config:
    """Read `[--config recipe.yaml] [--key value …]` into a checked configuration.

    Args:
        arguments: the command line without the program's name.
        default_recipe: read when there is no `--config`. Where the command line names other data than this recipe's
            (`--dataset` or `--data_dir`), the recipe's own data are left out.

    Raises:
        UserError: the recipe cannot be read.
        ConfigError: with every unknown key, wrong type, value out of range and contradiction.
    """
    errors: list[str] = []
    overrides = read_command_line(arguments)
    chosen = [entry for entry in overrides if entry.key == "config"]
    overrides = [entry for entry in overrides if entry.key != "config"]
    if len(chosen) > 1 or any(len(entry.texts) != 1 for entry in chosen):
        raise UserError("--config takes one recipe, such as --config recipes/mnist/mlp.yaml")
    path = Path(chosen[0].texts[0]) if chosen else default_recipe
    recipe = read_recipe(path, errors) if path else []
    if not chosen and {"dataset", "data_dir"} & {entry.key for entry in overrides}:
        recipe = [entry for entry in recipe if entry.key not in ("dataset", "data_dir")]
    parser = HfArgumentParser(GROUPS, prog="finetune.py")
    _answer_help(parser, overrides)
    values = _defaults(_read_values(parser, recipe + overrides, errors))
    precision, contradictions = decide_precision(values)
    values |= precision
    errors += contradictions
    groups = _build_checked(GROUPS[:-1], values, errors)
    errors += _check_values(values, values, errors) + check_machine(values)
    stages = groups[2].stages if groups[2] is not None else None
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict):
            _type_stage(parser, f"stages[{number}]", stage, errors)
    for number, stage in enumerate(stages if stages and not errors else []):
        arguments = {key: value for key, value in stage.items() if key not in ("name", "train")}
        wrong = _check_values(own := _in_stage(values, arguments), arguments, [])
        wrong or _explained(_training, own, wrong)
        errors += [f"stages[{number}]: {error}" for error in wrong]
    training = None if errors else _explained(_training, values, errors)
    if errors:
        raise ConfigError(errors)
    return Config(*groups, training, values)


def _check_values(values: dict[str, Any], own: Iterable[str], known: list[str]) -> list[str]:
    """What is wrong with the training arguments, alone and beside other keys.

    Args:
        values: of a run, or of a stage.
        own: the keys that it does not have from elsewhere.
        known: what is wrong already.
    """
    errors = check_training(values) + check_fields(values, own)
    if not any(error.startswith("method:") for error in known):  # one message for one misspelt name
        errors += _check_together(values)
    return errors


def _type_stage(parser: HfArgumentParser, where: str, stage: dict[str, Any], errors: list[str]) -> None:
    """Give the training arguments of a stage their types, by the same judge as those of the run."""
    for key in [key for key in stage if key not in ("name", "train")]:
        if key in OF_THE_RUN:
            errors.append(f"{where}: {key} applies to the whole run: move it out of stages")
        elif key not in _TRAINING:
            errors.append(
                f"{where}: {key} is no training argument of a stage{nearest(key, sorted(_TRAINING - OF_THE_RUN))}"
            )
        else:
            value = stage.pop(key)
            texts = None if value is None else [_as_text(value)]
            try:
                stage |= parse_entry(parser, Entry(key, texts, where), _LISTS, _NULLABLE)
            except ValueError as error:
                errors.append(f"{where}: {error}")


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)


def parse_evaluation(arguments: list[str]) -> tuple[DataArguments, EvaluationArguments]:
    """Read the command line of an evaluation. Where the model lies in a run, the run's data are the default.

    Raises:
        ConfigError: with everything that is wrong.
    """
    errors: list[str] = []
    overrides = read_command_line(arguments)
    groups = (DataArguments, EvaluationArguments)
    parser = HfArgumentParser(groups, prog="eval.py")
    _answer_help(parser, overrides)
    keys = {f.name for f in dataclasses.fields(DataArguments)}
    model = next((entry.shown for entry in overrides if entry.key == "model"), None)
    if model is None:
        raise ConfigError(["model is missing: give --model a folder or a name on the Hub"])
    saved = [path for path in (Path(model) / "config.yaml", Path(model).parent / "config.yaml") if path.is_file()]
    recipe = [entry for entry in read_recipe(saved[0], errors) if entry.key in keys] if saved else []
    if {"dataset", "data_dir"} & {entry.key for entry in overrides}:
        recipe = []
    values = _read_values(parser, recipe + overrides, errors)
    data, evaluation = _build_checked(groups, values, errors)
    errors += check_machine(values, takes_use_cpu=False)
    if errors:
        raise ConfigError(errors)
    return data, evaluation


def _answer_help(parser: HfArgumentParser, entries: list[Entry]) -> None:
    if "help" in {entry.key for entry in entries}:
        parser.print_help()
        sys.exit(0)


def _build(group: type, values: dict[str, Any], errors: list[str]) -> Any:
    names = {f.name for f in dataclasses.fields(group) if f.init}
    return _explained(lambda own: group(**own), {key: value for key, value in values.items() if key in names}, errors)


def _explained(build: Callable[[dict[str, Any]], Any], values: dict[str, Any], errors: list[str]) -> Any:
    """What `build` makes of the values, or None where it refuses them, for which there is an error more."""
    try:
        return build(values)
    except (ValueError, TypeError, ImportError) as error:
        errors.append(" ".join(str(error).split()))
        return None


def _find_local_data(values: dict[str, Any]) -> None:
    """Look a short dataset name up in the folder `FTKIT_DATA_DIR`; make `data_dir` independent of where we stand."""
    shared, dataset = os.environ.get("FTKIT_DATA_DIR"), values.get("dataset")
    if (
        shared
        and dataset not in (None, *EMBEDDED)
        and not values.get("data_dir")
        and os.path.isdir(Path(shared) / dataset)
    ):
        values["data_dir"] = str(Path(shared) / dataset)
    if values.get("data_dir"):
        values["data_dir"] = str(Path(os.path.expanduser(values["data_dir"])).absolute())
