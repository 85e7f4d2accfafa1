"""The arguments of a run beside transformers' own: small dataclasses, each of which knows what is wrong with it."""

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftkit.errors import nearest

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
        if self.stages and self.method not in ("scratch", "full"):
            errors.append(
                f"stages and method: {self.method} contradict each other: with stages of your own, method "
                "is scratch or full, which says where the weights come from"
            )
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
    name = str(stage.get("name", "stage"))
    if not re.fullmatch(r"\w[\w.-]*", name):
        return [f"{where}.name: {name!r} names a folder: use letters, digits, `-`, `_` and `.`"]
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
