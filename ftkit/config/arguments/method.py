"""How a model is trained: the method and its stages."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from ftkit.config.values import Options, StageList, from_json
from ftkit.errors import Advice

_MAPPINGS = ("stages", "adapter_args")


@dataclass
class MethodArguments:
    """What trains, in which order."""

    method: str = field(
        default="scratch",
        metadata={
            "help": "One of ftkit's own, or any adapter of the installed peft (lora, adalora, loha, lokr, ia3, oft, "
            "vera, …). scratch starts from random weights, all others from trained ones."
        },
    )
    stages: StageList | None = field(
        default=None,
        metadata={"help": "Stages of your own: a list of mappings with `train` and training arguments (JSON)."},
    )
    surgical_groups: list[str] | None = field(
        default=None, metadata={"help": "The layer groups or patterns of module names that `surgical` trains."}
    )
    adapter_args: Options | None = field(
        default=None,
        metadata={
            "help": "Options of the adapter by PEFT's own names, such as {r: 16, target_modules: [qkv]} (JSON)."
        },
    )
    merge_adapters: bool = field(
        default=False,
        metadata={"help": "Merge the adapters into the saved weights, which then load without peft."},
    )
    train_batchnorm_stats: bool = field(
        default=False, metadata={"help": "Update the running statistics of frozen BatchNorms."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Each layer group's learning rate is this times that of the next towards the head."},
    )
    head_lr_multiplier: float = field(
        default=1.0, metadata={"help": "The head's learning rate is this times learning_rate."}
    )
    cache_features: bool = field(
        default=True,
        metadata={"help": "Compute the features of a frozen body once, if only the head trains, on fixed pixels."},
    )

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith(("[", "{")):
                setattr(self, name, from_json(value))

    def check(self) -> list[str]:
        """The errors in these arguments, one sentence each."""
        errors: list[str] = []
        if self.adapter_args is not None and not isinstance(self.adapter_args, dict):
            errors.append(f'adapter_args: {self.adapter_args!r} is not a mapping such as {{"r": 8}}')
        if not 0 < self.layer_decay <= 1:
            message = f"layer_decay: {self.layer_decay} must be more than 0 and at most 1, such as 0.75"
            errors.append(Advice(message, {"layer_decay": 0.75}))
        if not 0 < self.head_lr_multiplier < math.inf:
            message = f"head_lr_multiplier: {self.head_lr_multiplier} must be more than 0, such as 10"
            errors.append(Advice(message, {"head_lr_multiplier": 10}))
        return errors + self._check_stages()

    def in_stage(self, number: int, fix: dict[str, Any]) -> dict[str, Any]:
        """The settings that a message about a stage recommends, as settings of the run.

        Args:
            number: the stage's number in `stages`.
            fix: the settings for the stage; None leaves a key out.
        """
        stages = list(self.stages or [])
        stages[number] = {key: value for key, value in (stages[number] | fix).items() if value is not None}
        return {"stages": stages}

    def _check_stages(self) -> list[str]:
        if self.stages is None:
            return []
        if not isinstance(self.stages, list):
            return [f'stages: {self.stages!r} is not a list of mappings such as [{{"train": "head"}}]']
        if not self.stages:
            return [Advice("stages: the list is empty: leave it out, or give at least one stage", {"stages": None})]
        errors = []
        for number, stage in enumerate(self.stages):
            if not isinstance(stage, dict) or "train" not in stage:
                errors.append(f"stages[{number}]: {stage!r} is not a mapping with `train`")
            elif not re.fullmatch(r"\w[\w.-]*", name := str(stage.get("name", "stage"))):
                errors.append(f"stages[{number}].name: {name!r} names a folder: use letters, digits, `-`, `_` and `.`")
        return errors
