"""The configuration of a run: small dataclasses, and the one strict loader.

A recipe is a flat YAML file; every key can be overridden on the command line by its own name. Both are turned into
arguments and read by one `HfArgumentParser` over ftkit's dataclasses and transformers' unmodified
`TrainingArguments`, so that a type, a choice or a misspelt key is judged in one place. All errors are reported at
once, before data or model are touched.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ftkit.errors import ConfigError, UserError, nearest
from ftkit.settings import Setting, parse_setting, read_command_line, read_yaml

OWN_MODELS = ("mlp", "convnet", "rnn")


@dataclass
class DataArguments:
    """Which images to read, and how to split them."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "digits, mnist, fashion_mnist, cifar10, cifar100, or any dataset of the Hub by its name."},
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A local folder or file: class folders, IDX files, CIFAR batches, parquet files, a CSV or "
            "JSON-lines file of paths and labels, or a save_to_disk folder."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration name of a Hub dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "A branch, tag or commit of the Hub dataset."}
    )
    train_split: str = field(default="train", metadata={"help": "The name of the split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "The split that chooses the checkpoint."})
    test_split: str = field(default="test", metadata={"help": "The split that is reported; nothing is chosen on it."})
    image_column: str | None = field(default=None, metadata={"help": "Found by its type when not given."})
    label_column: str | None = field(default=None, metadata={"help": "Found by its type when not given."})
    validation_size: float = field(
        default=0.1, metadata={"help": "Share of train that becomes validation where there is no such split."}
    )
    test_size: float = field(
        default=0.2, metadata={"help": "Share of train that becomes test where there is no such split."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits and of few-shot sampling."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a random subset of this many images."}
    )
    samples_per_class: int | None = field(
        default=None, metadata={"help": "Few-shot: train on this many images of each class."}
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Keep only the classes with these names."})
    on_bad_image: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "What to do about images that do not decode: stop before training, or leave them out."},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where decoded images are kept (default: ftkit/ under the Hugging Face home)."}
    )

    def check(self) -> list[str]:
        """All that is wrong with these arguments, one sentence each."""
        errors = [
            f"{name}: {getattr(self, name)} is not a share of the data: give a number between 0 and 1"
            for name in ("validation_size", "test_size")
            if not 0 < getattr(self, name) < 1
        ]
        if not errors and self.validation_size + self.test_size >= 1:
            errors.append(
                f"validation_size: {self.validation_size} and test_size: {self.test_size} leave nothing to train on: "
                "their sum must be under 1"
            )
        errors += [
            f"{name}: {getattr(self, name)} must be at least 1"
            for name in ("max_train_samples", "samples_per_class")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if not 0 <= self.split_seed < 2**32:
            errors.append(f"split_seed: {self.split_seed} must be at least 0 and under 2^32")
        if self.max_train_samples is not None and self.samples_per_class is not None:
            errors.append("max_train_samples and samples_per_class contradict each other: give one of them")
        if self.dataset == "digits" and self.data_dir is not None:
            errors.append(
                f"dataset: digits is embedded and reads no folder: leave out data_dir: {self.data_dir}, or leave out "
                "dataset to read that folder"
            )
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            errors.append(f"classes: {self.classes} must name at least two classes, each once")
        splits = [self.train_split, self.validation_split, self.test_split]
        if len(set(splits)) < 3:
            errors.append(f"train_split, validation_split and test_split must differ, not {splits}")
        return errors


@dataclass
class ModelArguments:
    """Which model to build or load."""

    model: str = field(
        default="mlp",
        metadata={"help": "mlp, convnet, rnn, timm/<architecture>, a model of the Hub, or a local folder."},
    )
    model_args: dict | str | None = field(
        default=None,
        metadata={"help": "Further arguments of the model's configuration, as a mapping (JSON on the command line)."},
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout before the head (timm: drop_rate) and in ftkit's own hidden layers."}
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Side, or height and width, in pixels. Default: the model's, else the data's."}
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "Per channel, of pixels in 0..1. Default: the model's, else measured on train."},
    )
    image_std: list[float] | None = field(default=None, metadata={"help": "See image_mean."})
    revision: str | None = field(default=None, metadata={"help": "A branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model. Only for a source that you trust."}
    )

    def __post_init__(self):
        if isinstance(self.model_args, str) and self.model_args.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):  # check() says so
                self.model_args = json.loads(self.model_args)

    def check(self) -> list[str]:
        """All that is wrong with these arguments, one sentence each."""
        errors = _check_model_name(self.model)
        if self.model_args is not None and not isinstance(self.model_args, dict):
            errors.append(f'model_args: {self.model_args!r} is not a mapping such as {{"hidden_sizes": [128, 128]}}')
        if self.dropout is not None and not 0 <= self.dropout < 1:
            errors.append(f"dropout: {self.dropout} must be at least 0 and under 1")
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            errors.append(f"image_size: {self.image_size} must be one side, or height and width, in pixels")
        if (self.image_mean is None) != (self.image_std is None):
            errors.append("image_mean and image_std belong together: give both or neither")
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None and len(getattr(self, name)) not in (1, 3):
                errors.append(f"{name}: {getattr(self, name)} must hold 1 number, or 3 (one for each channel)")
        if self.image_std is not None and min(self.image_std) <= 0:
            errors.append(f"image_std: {self.image_std} must be positive")
        return errors


def local_model(name: str) -> Path | None:
    """The folder of a saved model that `name` means: itself, or `model/` of a run; None where it means no folder."""
    path = Path(name).expanduser()
    return next((folder for folder in (path, path / "model") if (folder / "config.json").is_file()), None)


def _check_model_name(name: str) -> list[str]:
    """Whether anybody can know a model of this name; what lies on the Hub is not asked here."""
    path = Path(name).expanduser()
    if name in OWN_MODELS or local_model(name) is not None:
        return []
    if path.is_dir():
        return [f"model: the folder {path} holds no config.json: expected a saved model"]
    if name.startswith(("/", "./", "../", "~")):
        return [f"model: the folder {path} does not exist"]
    if "/" in name and not name.startswith("timm/"):
        return []

    import timm  # late: most configurations name no timm model, and its list is long
    from timm.models import split_model_name_tag

    architecture, _ = split_model_name_tag(name.removeprefix("timm/"))
    if name.startswith("timm/"):
        known = timm.is_model(architecture)
        hint = nearest(architecture, timm.list_models())
        return [] if known else [f"model: timm knows no architecture {architecture!r}{hint}"]
    hint = f" (did you mean 'timm/{name}'?)" if timm.is_model(architecture) else nearest(name, OWN_MODELS)
    hint = hint or nearest(f"timm/{name}", [f"timm/{model}" for model in timm.list_models()])
    return [
        f"model: {name!r} is unknown{hint}: expected {', '.join(OWN_MODELS)}, timm/<architecture>, <owner>/<name> on "
        "the Hub, or a local folder"
    ]


@dataclass
class MethodArguments:
    """How the model is trained."""

    method: Literal[
        "scratch", "full", "linear_probe", "lp_ft", "gradual_unfreeze", "surgical", "bitfit", "norm_tuning"
    ] = field(
        default="scratch",
        metadata={"help": "scratch: random weights. All others start from trained weights; full tunes all of them."},
    )
    stages: list | str | None = field(
        default=None,
        metadata={"help": "A plan of your own: a list of mappings with `train` and training arguments (JSON)."},
    )
    surgical_groups: list[str] | None = field(
        default=None, metadata={"help": "The layer groups, or patterns of module names, that `surgical` trains."}
    )
    train_batchnorm_stats: bool = field(
        default=False, metadata={"help": "Let the running statistics of frozen BatchNorms follow the data."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better one on validation."}
    )

    def __post_init__(self):
        if isinstance(self.stages, str) and self.stages.startswith("["):
            with contextlib.suppress(json.JSONDecodeError):  # check() says so
                self.stages = json.loads(self.stages)

    def check(self) -> list[str]:
        """All that is wrong with these arguments, one sentence each."""
        errors = []
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            errors.append(f"early_stopping_patience: {self.early_stopping_patience} must be at least 1")
        if (self.method == "surgical") != (self.surgical_groups is not None):
            errors.append(f"surgical_groups belongs to method: surgical, and only there (method: {self.method})")
        if self.stages is not None and not isinstance(self.stages, list):
            return [*errors, f'stages: {self.stages!r} is not a list of mappings such as [{{"train": "head"}}]']
        for number, stage in enumerate(self.stages or []):
            errors += _check_stage(f"stages[{number}]", stage)
        if self.stages == []:
            errors.append("stages: the list is empty: leave it out, or give at least one stage")
        return errors


def _check_stage(where: str, stage: Any) -> list[str]:
    if not isinstance(stage, dict) or "train" not in stage:
        return [f"{where}: {stage!r} is not a mapping with `train`"]
    train, named = stage["train"], ("head", "all", "bias", "norm")
    last = isinstance(train, dict) and list(train) == ["last"] and type(train["last"]) is int and train["last"] > 0
    patterns = isinstance(train, list) and train and all(isinstance(pattern, str) for pattern in train)
    if not (train in named or last or patterns):
        expected = f"one of {', '.join(named)}, a mapping `last: n`, or a list of module names"
        return [f"{where}.train: {train!r} is not {expected}"]
    return []


@dataclass
class RunArguments:
    """What happens to the run's folder."""

    overwrite: bool = field(
        default=False, metadata={"help": "Delete what an earlier run left in output_dir before training."}
    )

    def check(self) -> list[str]:
        """Nothing can be wrong here alone."""
        return []


@dataclass
class EvaluationArguments:
    """Which saved model to evaluate, and on what."""

    model: str = field(default="", metadata={"help": "A folder (of a model, or of a run) or a name on the Hub."})
    split: Literal["train", "validation", "test"] = field(default="test", metadata={"help": "What to evaluate on."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Write predictions, metrics and report into this new folder."}
    )
    batch_size: int = field(default=256, metadata={"help": "Images per batch and device."})
    revision: str | None = field(default=None, metadata={"help": "A branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model. Only for a source that you trust."}
    )

    def check(self) -> list[str]:
        """All that is wrong with these arguments, one sentence each."""
        errors = _check_model_name(self.model)
        if self.model in OWN_MODELS and local_model(self.model) is None:
            errors.append(f"model: {self.model} has no trained weights: give the folder of a saved model")
        if self.batch_size < 1:
            errors.append(f"batch_size: {self.batch_size} must be at least 1")
        if self.output_dir and Path(self.output_dir).exists():
            errors.append(f"output_dir: {self.output_dir} exists: give the name of a new folder")
        return errors


GROUPS = (DataArguments, ModelArguments, MethodArguments, RunArguments, TrainingArguments)
# Keys that take one text or several; `HfArgumentParser` knows them as one.
_LISTS = frozenset(name for name, hint in get_type_hints(TrainingArguments).items() if "list[str]" in str(hint))
# How a run is started and where it left off: these do not belong to what a run is.
_NOT_SAVED = ("overwrite", "resume_from_checkpoint")


@dataclass
class Config:
    """A checked configuration. `values` is what the recipe, the command line and ftkit's defaults say, by key."""

    data: DataArguments
    model: ModelArguments
    method: MethodArguments
    run: RunArguments
    training: TrainingArguments
    values: dict[str, Any]

    def to_yaml(self) -> str:
        """The resolved configuration as a recipe: running it again repeats the run."""
        own = {}
        for group in (self.data, self.model, self.method, self.run):
            own |= {k: v for k, v in dataclasses.asdict(group).items() if v is not None}
        training = {k: v for k, v in self.values.items() if k not in own and v is not None}
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
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 256,
        "logging_steps": 50,
        "logging_nan_inf_filter": False,  # it hides NaN, and waits for the device at every step
        "save_total_limit": 1,
    }
    strategy = values.get("eval_strategy", "epoch")
    defaults["save_strategy"] = "epoch" if strategy == "no" else strategy
    if "eval_steps" in values and strategy == "steps":
        defaults["save_steps"] = values["eval_steps"]
    if strategy != "no":
        defaults |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    data = values.get("dataset") or Path(values.get("data_dir") or "").name
    parts = [data, values.get("model", ModelArguments.model), values.get("method", MethodArguments.method)]
    slug = "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts)
    defaults["output_dir"] = str(Path("runs") / slug)
    return defaults | values


def machine_defaults() -> dict[str, Any]:
    """What depends on the machine, and does not belong into a saved configuration."""
    defaults: dict[str, Any] = {"disable_tqdm": not sys.stderr.isatty(), "ddp_find_unused_parameters": False}
    if not torch.accelerator.is_available():
        # Without `use_cpu` bf16 is refused on a machine that has no accelerator.
        defaults |= {"use_cpu": True, "dataloader_pin_memory": False}
    return defaults


def _check_training(values: dict[str, Any]) -> list[str]:
    """What `TrainingArguments` lets pass and nobody means."""
    ranges = {
        "learning_rate": (lambda v: v >= 0, "at least 0"),
        "num_train_epochs": (lambda v: v > 0, "more than 0"),
        "per_device_train_batch_size": (lambda v: v >= 1, "at least 1"),
        "per_device_eval_batch_size": (lambda v: v >= 1, "at least 1"),
        "gradient_accumulation_steps": (lambda v: v >= 1, "at least 1"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "warmup_steps": (lambda v: v >= 0, "at least 0"),
        "max_grad_norm": (lambda v: v >= 0, "at least 0"),
        "label_smoothing_factor": (lambda v: 0 <= v < 1, "at least 0 and under 1"),
        "seed": (lambda v: 0 <= v < 2**32, "at least 0 and under 2^32"),
    }
    errors = [
        f"{key}: {values[key]} must be {expected}"
        for key, (valid, expected) in ranges.items()
        if key in values and not (math.isfinite(values[key]) and valid(values[key]))
    ]
    if values.get("fp16") and not torch.accelerator.is_available():
        errors.append("fp16: true needs a GPU, and there is none: use bf16, or leave it out")
    for key in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        try:
            mapping = isinstance(json.loads(values.get(key) or "{}"), dict)
        except json.JSONDecodeError:
            mapping = False
        if not mapping:
            errors.append(f'{key}: {values[key]!r} is not a mapping such as {{"name": 1}}')
    if values.get("push_to_hub"):
        errors.append("push_to_hub: true is not built yet: train, then `hf upload <name> <output_dir>/model`")
    return errors


def _check_together(values: dict[str, Any]) -> list[str]:
    """Keys of different groups that contradict each other."""
    errors = []
    model, method = values.get("model", ModelArguments.model), values.get("method", MethodArguments.method)
    if method != "scratch" and model in OWN_MODELS:
        errors.append(
            f"method: {method} starts from trained weights, and model: {model} has none: use method: scratch, or give "
            "the folder of a trained model"
        )
    if values.get("early_stopping_patience") is not None and not values.get("load_best_model_at_end"):
        errors.append(
            "early_stopping_patience needs load_best_model_at_end: true and an eval_strategy: without them the "
            "stopped run would keep a worse model than its best"
        )
    return errors


def _read_values(parser: HfArgumentParser, settings: list[Setting], errors: list[str]) -> dict[str, Any]:
    """Typed values by key, later settings over earlier ones; what is wrong with any of them goes to `errors`."""
    values = {}
    for setting in settings:
        try:
            values |= parse_setting(parser, setting, _LISTS)
        except ValueError as error:
            errors.append(f"{setting.origin}: {error}")
    _find_local_data(values)
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
    chosen = [setting for setting in overrides if setting.key == "config"]
    overrides = [setting for setting in overrides if setting.key != "config"]
    if len(chosen) > 1 or any(len(setting.texts) != 1 for setting in chosen):
        raise UserError("--config takes one recipe, such as --config recipes/mnist/mlp.yaml")
    path = Path(chosen[0].texts[0]) if chosen else default_recipe
    recipe = read_yaml(path, errors) if path else []
    if not chosen and {"dataset", "data_dir"} & {setting.key for setting in overrides}:
        recipe = [setting for setting in recipe if setting.key not in ("dataset", "data_dir")]
    parser = HfArgumentParser(GROUPS, prog="finetune.py")
    _answer_help(parser, overrides)
    values = _defaults(_read_values(parser, recipe + overrides, errors))
    groups = _build_checked(GROUPS[:-1], values, errors)
    errors += _check_training(values) + _check_together(values)
    if groups[2] is not None:
        _type_stages(parser, groups[2].stages, errors)
    training = None if errors else _build(TrainingArguments, machine_defaults() | values, errors)
    if errors:
        raise ConfigError(errors)
    return Config(*groups, training, values)


def _type_stages(parser: HfArgumentParser, stages: list[dict] | None, errors: list[str]) -> None:
    """Give the training arguments of each stage their types, by the same judge as those of the run."""
    keys = {f.name for f in dataclasses.fields(TrainingArguments)} - {"output_dir", "seed", "resume_from_checkpoint"}
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        for key in set(stage) - {"name", "train"} if isinstance(stage, dict) else ():
            where = f"stages[{number}]"
            if key not in keys:
                errors.append(f"{where}: {key} is no training argument of a stage{nearest(key, sorted(keys))}")
                continue
            try:
                stage |= parse_setting(parser, Setting(key, [_as_text(stage[key])], where), _LISTS)
                errors += [f"{where}: {error}" for error in _check_training({key: stage[key]})]
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
    parser = HfArgumentParser(groups, prog="evaluate.py")
    _answer_help(parser, overrides)
    keys = {f.name for f in dataclasses.fields(DataArguments)}
    model = next((setting.shown for setting in overrides if setting.key == "model"), None)
    if model is None:
        raise ConfigError(["model is missing: give --model a folder or a name on the Hub"])
    saved = [path for path in (Path(model) / "config.yaml", Path(model).parent / "config.yaml") if path.is_file()]
    recipe = [setting for setting in read_yaml(saved[0], errors) if setting.key in keys] if saved else []
    if {"dataset", "data_dir"} & {setting.key for setting in overrides}:
        recipe = []
    values = _read_values(parser, recipe + overrides, errors)
    data, evaluation = _build_checked(groups, values, errors)
    if errors:
        raise ConfigError(errors)
    return data, evaluation


def _answer_help(parser: HfArgumentParser, settings: list[Setting]) -> None:
    if "help" in {setting.key for setting in settings}:
        parser.print_help()
        sys.exit(0)


def _build(group: type, values: dict[str, Any], errors: list[str]) -> Any:
    names = {f.name for f in dataclasses.fields(group) if f.init}
    try:
        return group(**{key: value for key, value in values.items() if key in names})
    except (ValueError, TypeError, ImportError) as error:
        errors.append(" ".join(str(error).split()))
        return None


def _find_local_data(values: dict[str, Any]) -> None:
    """Look a short dataset name up in the folder `FTKIT_DATA_DIR`; make `data_dir` independent of where we stand."""
    shared, dataset = os.environ.get("FTKIT_DATA_DIR"), values.get("dataset")
    if shared and dataset not in (None, "digits") and not values.get("data_dir") and (Path(shared) / dataset).is_dir():
        values["data_dir"] = str(Path(shared) / dataset)
    if values.get("data_dir"):
        values["data_dir"] = str(Path(values["data_dir"]).expanduser().absolute())
