"""A checked configuration: of a run, or of an evaluation of a saved model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ftkit.config.arguments.data import DataArguments
from ftkit.config.arguments.evaluation import EvaluationArguments
from ftkit.config.arguments.job import JobArguments
from ftkit.config.arguments.loss import LossArguments
from ftkit.config.arguments.method import MethodArguments
from ftkit.config.arguments.model import ModelArguments
from ftkit.config.arguments.training import DEFAULTS, TrainingArguments, derived, derived_keys, in_stage, values_of
from ftkit.precision import HALVES

# Written to config.yaml even at their defaults.
_SPELT_OUT = ("eval_strategy", "per_device_eval_batch_size", "logging_steps", "save_total_limit", "learning_rate")
# These say how a run is launched, not what it computes; transformers derives `do_eval` from `eval_strategy`.
_NOT_SAVED = ("overwrite", "resume_from_checkpoint", "do_eval")


@dataclass
class Config:
    """The configuration of a run.

    Attributes:
        training: transformers' `TrainingArguments` with `push_to_hub` off, because its `Trainer` pushes at every
            checkpoint. During the checks it is a plain namespace of typed values.
        given: the training arguments that the recipe or the command line sets, unless to the value that follows from
            other keys anyway.
        pushes: whether the finished model is pushed to the Hub (`push_to_hub`), once.
    """

    data: DataArguments
    model: ModelArguments
    method: MethodArguments
    loss: LossArguments
    job: JobArguments
    training: TrainingArguments
    given: tuple[str, ...]
    pushes: bool

    def if_given(self, key: str) -> Any:
        """The value of a training argument if it was given, else None."""
        return getattr(self.training, key) if key in self.given else None

    def defaults(self) -> str:
        """The main hyperparameters that are left at their defaults, for the log; empty if all are set."""
        args = self.training
        texts = {
            "learning_rate": f"learning_rate {args.learning_rate:g} (the method's)",
            "num_train_epochs": f"{args.num_train_epochs:g} epochs",
            "per_device_train_batch_size": f"batches of {args.per_device_train_batch_size}",
        }
        if args.max_steps > 0:
            del texts["num_train_epochs"]
        if args.load_best_model_at_end:
            texts["metric_for_best_model"] = f"the checkpoint with the best {args.metric_for_best_model}"
        return ", ".join(text for key, text in texts.items() if key not in self.given)

    def of_stage(self, arguments: dict[str, Any], folder: Path) -> TrainingArguments:
        """The training arguments of a stage that writes to `folder`: the run's, overridden by its own `arguments`."""
        own = in_stage(values_of(self.training), self.given, arguments)
        return TrainingArguments(**own | {"output_dir": str(folder)})

    def to_yaml(self) -> str:
        """The resolved configuration as a recipe: running it again repeats the run."""
        saved: dict[str, Any] = {}
        for group in (self.data, self.model, self.method, self.loss, self.job):
            saved |= {key: value for key, value in dataclasses.asdict(group).items() if value is not None}
        values = values_of(self.training)
        values |= {"push_to_hub": self.pushes, "report_to": values["report_to"] or "none"}
        named = dict.fromkeys((*_SPELT_OUT, *derived(values), "output_dir", *self.given, *HALVES))
        saved |= {key: values[key] for key in named}
        saved = {key: _plain(value) for key, value in saved.items() if key not in _NOT_SAVED}
        return yaml.safe_dump(saved, sort_keys=False, allow_unicode=True)


def chosen(saved: dict[str, Any]) -> dict[str, Any]:
    """The keys of a saved configuration that were given or differ from their default, and the learning rate.

    Args:
        saved: the values that `Config.to_yaml` writes, by key.
    """
    groups = (DataArguments, ModelArguments, MethodArguments, LossArguments, JobArguments)
    defaults = {f.name: f.default for group in groups for f in dataclasses.fields(group)}
    defaults |= {key: DEFAULTS[key] for key in (*_SPELT_OUT, *HALVES) if key != "learning_rate"}
    defaults |= {key: saved[key] for key in derived_keys(saved)}
    return {key: value for key, value in saved.items() if key not in defaults or value != defaults[key]}


class Evaluation(NamedTuple):
    """The configuration of an evaluation of a saved model.

    Attributes:
        own_data: whether the data are those of the run that the model belongs to, split as in the run.
    """

    data: DataArguments
    evaluation: EvaluationArguments
    own_data: bool


def _plain(value: Any) -> Any:
    """A value for YAML's safe dumper: enums as their value, dataclasses as the fields that differ from the default."""
    if dataclasses.is_dataclass(value):
        values = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {name: _plain(now) for name, (now, default) in values.items() if now != default}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return getattr(value, "value", value)
