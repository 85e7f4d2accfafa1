"""A method is a plan: a list of stages that say what trains. A new method is one more row in `METHODS`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ftkit.config import MethodArguments
from ftkit.methods.trainable import Train, Trainable, kind_of, stage_name


@dataclass(frozen=True)
class Stage:
    """One stage of training, with its own optimizer and schedule.

    Attributes:
        name: the name of its folder, and in the log.
        train: the part that trains: `head`, `all`, `bias`, `norm`, `adapters`, `{"last": n}` (the last n layer groups
            and the head) or a list of patterns of module names (see `ftkit.methods.trainable`).
        arguments: the training arguments that differ from the run's.
    """

    name: str
    train: Train = "all"
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Trainable:
        """The row of `ftkit.methods.trainable` for `train`."""
        return kind_of(self.train)


def _one_stage(train: Train) -> Callable[..., list[Stage]]:
    return lambda *_: [Stage(stage_name(train), train)]


def _lp_ft(_args: MethodArguments, _layer_groups: int, learning_rate: float) -> list[Stage]:
    return [Stage("head", "head"), Stage("all", "all", {"learning_rate": learning_rate / 10})]


def _gradual_unfreeze(_args: MethodArguments, layer_groups: int, _learning_rate: float) -> list[Stage]:
    between = [Stage(f"last-{n}", {"last": n}) for n in range(1, layer_groups - 1)]
    return [Stage("head", "head"), *between, Stage("all", "all")]


def _surgical(args: MethodArguments, _layer_groups: int, _learning_rate: float) -> list[Stage]:
    return [Stage("surgical", list(args.surgical_groups or []))]


class Method(NamedTuple):
    """A fine-tuning method.

    Attributes:
        stages: function (arguments, number of layer groups, the run's learning rate) -> stages.
        learning_rate: the default learning rate, for AdamW: cautious, for large models trained on much data; higher
            for methods that train few parameters. recipes/cifar10 has larger ones, for a small network.
        pretrained: whether the method starts from trained weights.
        takes_stages: whether a recipe may set its own `stages`; the method then decides only the starting weights.
    """

    stages: Callable[[MethodArguments, int, float], list[Stage]]
    learning_rate: float = 1e-3
    pretrained: bool = True
    takes_stages: bool = False


METHODS = {
    # All parameters, from random or from trained weights.
    "scratch": Method(_one_stage("all"), pretrained=False, takes_stages=True),
    "full": Method(_one_stage("all"), 1e-4, takes_stages=True),
    "linear_probe": Method(_one_stage("head"), 1e-2),
    # The head, then all with a tenth of the learning rate (Kumar et al. 2022, arXiv:2202.10054).
    "lp_ft": Method(_lp_ft),
    # The head, then one more layer group in each stage, from the last to the first (Howard & Ruder 2018,
    # arXiv:1801.06146).
    "gradual_unfreeze": Method(_gradual_unfreeze, 3e-4),
    # Only the chosen groups (Lee et al. 2022, arXiv:2210.11466).
    "surgical": Method(_surgical, 3e-4),
    # The biases and the head (Ben Zaken et al. 2022, arXiv:2106.10199).
    "bitfit": Method(_one_stage("bias")),
    # The scales and shifts of the normalisation layers, and the head.
    "norm_tuning": Method(_one_stage("norm")),
}
_ADAPTER = Method(_one_stage("adapters"))  # every method of PEFT: the adapters and the head


def is_adapter(method: str) -> bool:
    """Whether a method adds modules of PEFT to the model."""
    return method not in METHODS


def make_plan(args: MethodArguments, layer_groups: int, learning_rate: float) -> list[Stage]:
    """The stages of a method, or the recipe's own.

    Args:
        args: `method`, `stages`, and `surgical_groups` for `surgical`.
        layer_groups: number of the model's layer groups, including the head.
        learning_rate: the run's learning rate, from which a method may derive a stage's.
    """
    if args.stages is None:
        return METHODS.get(args.method, _ADAPTER).stages(args, layer_groups, learning_rate)
    return [
        Stage(
            str(stage.get("name", stage_name(stage["train"]))),
            stage["train"],
            {key: value for key, value in stage.items() if key not in ("name", "train")},
        )
        for stage in args.stages
    ]


def default_learning_rate(method: str) -> float:
    """The learning rate of a method if a recipe gives none."""
    return METHODS.get(method, _ADAPTER).learning_rate


def starts_from_trained_weights(method: str) -> bool:
    """Whether a method fine-tunes instead of starting from random weights."""
    return METHODS.get(method, _ADAPTER).pretrained
