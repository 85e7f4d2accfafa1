"""A method is a plan: a list of stages, each of which says what trains."""

from dataclasses import dataclass, field
from typing import Any

from ftkit.config import MethodArguments

Train = str | list[str] | dict[str, int]
# ftkit's own methods, with the learning rate (AdamW) of each unless a recipe gives one. They are cautious, for large
# models trained on much data; what moves few parameters may move them further. recipes/cifar10 has larger ones, for a
# small network.
METHODS = {
    "scratch": 1e-3,
    "full": 1e-4,
    "linear_probe": 1e-2,
    "lp_ft": 1e-3,
    "gradual_unfreeze": 3e-4,
    "surgical": 3e-4,
    "bitfit": 1e-3,
    "norm_tuning": 1e-3,
}


@dataclass(frozen=True)
class Stage:
    """One stage of training, with an optimizer and a schedule of its own.

    Attributes:
        name: how its folder and its lines in the log are called.
        train: what moves: `head`, `all`, `bias`, `norm`, `adapters`, `{"last": n}` (the last n layer groups and the
            head) or a list of patterns of module names (see `freezing.trained_parameters`).
        arguments: the training arguments that differ from the run's.
    """

    name: str
    train: Train = "all"
    arguments: dict[str, Any] = field(default_factory=dict)


def make_plan(args: MethodArguments, layer_groups: int, learning_rate: float) -> list[Stage]:
    """The stages of a method.

    Args:
        args: `method`, or the `stages` that a recipe spells out; `surgical_groups` for `surgical`.
        layer_groups: how many the model has, the head counted.
        learning_rate: the run's, from which a plan derives that of its stages.

    Returns:
        - `scratch`, `full`: all parameters; they differ in the weights that they start from.
        - `linear_probe`: the head.
        - `lp_ft`: the head, then all with a tenth of the learning rate (Kumar et al. 2022, arXiv:2202.10054).
        - `gradual_unfreeze`: the head, then one layer group more in each stage, from the last to the first (Howard &
          Ruder 2018, arXiv:1801.06146).
        - `surgical`: the chosen groups alone (Lee et al. 2022, arXiv:2210.11466).
        - `bitfit`: the biases and the head (Ben Zaken et al. 2022, arXiv:2106.10199).
        - `norm_tuning`: the scales and shifts of the normalisation layers, and the head.
        - any other: the adapters that `ftkit.methods.adapters` puts into the model, and the head.
    """
    if args.stages is not None:
        return [
            Stage(
                str(stage.get("name", _name(stage["train"]))),
                stage["train"],
                {key: value for key, value in stage.items() if key not in ("name", "train")},
            )
            for stage in args.stages
        ]
    if args.method == "lp_ft":
        return [Stage("head", "head"), Stage("all", "all", {"learning_rate": learning_rate / 10})]
    if args.method == "gradual_unfreeze":
        return [
            Stage("head", "head"),
            *(Stage(f"last-{n}", {"last": n}) for n in range(1, layer_groups - 1)),
            Stage("all", "all"),
        ]
    if args.method == "surgical":
        return [Stage("surgical", list(args.surgical_groups))]
    train = {"scratch": "all", "full": "all", "linear_probe": "head", "bitfit": "bias", "norm_tuning": "norm"}
    trained = "adapters" if is_adapter(args.method) else train[args.method]
    return [Stage(trained, trained)]


def _name(train: Train) -> str:
    if isinstance(train, dict):
        return f"last-{train['last']}"
    return train if isinstance(train, str) else "chosen"


def starts_from_trained_weights(method: str) -> bool:
    """Whether the plan fine-tunes: only `scratch` begins with random weights."""
    return method != "scratch"


def is_adapter(method: str) -> bool:
    """Whether a method adds modules of PEFT to the model."""
    return method not in METHODS


def default_learning_rate(method: str) -> float:
    """The learning rate of a method, unless a recipe gives one."""
    return METHODS.get(method, 1e-3)
