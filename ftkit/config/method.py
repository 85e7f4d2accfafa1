"""How a model is trained: the method, and the stages of it."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from ftkit.config.values import from_json
from ftkit.errors import nearest

PLANS = ("scratch", "full", "linear_probe", "lp_ft", "gradual_unfreeze", "surgical", "bitfit", "norm_tuning")
# Variants of PEFT's LoRA that have a name of their own, and the option that makes them.
LORA_VARIANTS = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
# The learning rate of a method (AdamW) unless a recipe gives one. They are cautious, for large models trained on much
# data; what moves few parameters may move them further. recipes/cifar10 has larger ones, for a small network.
LEARNING_RATES = {
    "scratch": 1e-3,
    "full": 1e-4,
    "linear_probe": 1e-2,
    "lp_ft": 1e-3,
    "gradual_unfreeze": 3e-4,
    "surgical": 3e-4,
}
_LEARNING_RATE = 1e-3
_MAPPINGS = ("stages", "adapter_args")


def adapter_configs() -> dict[str, type]:
    """PEFT's configuration classes by the names of the methods: its tuners that adapt modules and can keep a head."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING  # late: peft takes seconds
    from peft.tuners.tuners_utils import BaseTuner

    found = {}
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        tuner, options = PEFT_TYPE_TO_TUNER_MAPPING[kind], {f.name for f in dataclasses.fields(config)}
        if issubclass(tuner, BaseTuner) and {"target_modules", "modules_to_save"} <= options:
            found[kind.value.lower()] = config
    return dict(sorted((found | dict.fromkeys(LORA_VARIANTS, found["lora"])).items()))


def default_learning_rate(method: str) -> float:
    """The learning rate that a method begins with."""
    return LEARNING_RATES.get(method, _LEARNING_RATE)


@dataclass
class MethodArguments:
    """What trains, in which order."""

    method: str = field(
        default="scratch",
        metadata={
            "help": f"{', '.join(PLANS)}, {', '.join(LORA_VARIANTS)}, or any adapter of the installed peft "
            "(lora, adalora, loha, lokr, ia3, oft, vera, …). scratch: random weights; all others start from trained."
        },
    )
    stages: list | str | None = field(
        default=None,
        metadata={"help": "A plan of your own: a list of mappings with `train` and training arguments (JSON)."},
    )
    surgical_groups: list[str] | None = field(
        default=None, metadata={"help": "The layer groups, or patterns of module names, that `surgical` trains."}
    )
    adapter_args: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of the adapter by PEFT's own names, such as {r: 16, target_modules: [qkv]} (JSON)."
        },
    )
    merge_adapters: bool = field(
        default=False, metadata={"help": "Save plain weights with the adapters in them, which need no peft to load."}
    )
    train_batchnorm_stats: bool = field(
        default=False, metadata={"help": "Let the running statistics of frozen BatchNorms follow the data."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Each layer group's learning rate is this times that of the group behind it."}
    )
    head_lr_multiplier: float = field(
        default=1.0, metadata={"help": "The head's learning rate is this times the rest."}
    )
    cache_features: bool = field(
        default=True,
        metadata={"help": "Compute the features of a frozen body once, where the head alone trains on fixed pixels."},
    )

    def __post_init__(self):
        for name in _MAPPINGS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith(("[", "{")):
                setattr(self, name, from_json(value))

    @property
    def is_adapter(self) -> bool:
        """Whether the method adds modules of PEFT to the model."""
        return self.method not in PLANS

    def check(self) -> list[str]:
        """All that is wrong with these arguments, one sentence each."""
        errors = [] if self.method in PLANS else self._check_adapter()
        if (self.method == "surgical") != (self.surgical_groups is not None):
            errors.append(f"surgical_groups belongs to method: surgical, and only there (method: {self.method})")
        if not self.is_adapter:
            errors += [
                f"{name} belongs to the methods of peft, such as lora, and only there (method: {self.method})"
                for name in ("adapter_args", "merge_adapters")
                if getattr(self, name)
            ]
        if not 0 < self.layer_decay <= 1:
            errors.append(f"layer_decay: {self.layer_decay} must be more than 0 and at most 1, such as 0.75")
        if not 0 < self.head_lr_multiplier < math.inf:
            errors.append(f"head_lr_multiplier: {self.head_lr_multiplier} must be more than 0, such as 10")
        return errors + self._check_stages()

    def _check_adapter(self) -> list[str]:
        configs = adapter_configs()
        if self.method not in configs:
            valid = [*PLANS, *configs]
            return [f"method: {self.method!r} is unknown{nearest(self.method, valid)}: expected {', '.join(valid)}"]
        errors = []
        if self.adapter_args is not None and not isinstance(self.adapter_args, dict):
            return [f'adapter_args: {self.adapter_args!r} is not a mapping such as {{"r": 8}}']
        options = sorted(f.name for f in dataclasses.fields(configs[self.method]) if f.init)
        for key in self.adapter_args or {}:
            if key not in options:
                errors.append(
                    f"adapter_args: {self.method} has no option {key!r}{nearest(key, options)}: {', '.join(options)}"
                )
            elif key in ("inference_mode", "task_type"):
                errors.append(f"adapter_args: {key} is not for a classifier of images: leave it out")
        errors += self._check_adapter_values(configs[self.method])
        if self.train_batchnorm_stats:
            errors.append(
                "train_batchnorm_stats: true would move statistics that are not saved with an adapter: leave it out"
            )
        return errors

    def _check_adapter_values(self, config: type) -> list[str]:
        """What PEFT would take without a word, or answer with an error about something else."""
        args, errors = self.adapter_args or {}, []
        for option in dataclasses.fields(config):
            number = isinstance(option.default, (int, float)) and not isinstance(option.default, bool)
            if number and isinstance(args.get(option.name), str):
                errors.append(f"adapter_args: {option.name}: {args[option.name]!r} is not a number")
        saved = args.get("modules_to_save") or []
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            errors.append(f"adapter_args: modules_to_save: {saved!r} is not a list of names")
        for key in ("layers_to_transform", "layers_pattern"):
            if args.get(key) is not None and not args.get("target_modules"):
                errors.append(f"adapter_args: {key} needs target_modules beside it, to choose from")
        if str(args.get("init_lora_weights", "")).startswith("pissa_niter") and not self.merge_adapters:
            errors.append(
                f"adapter_args: init_lora_weights: {args['init_lora_weights']} draws at random what a reload would "
                "have to repeat: use pissa, or merge_adapters: true"
            )
        return errors

    def _check_stages(self) -> list[str]:
        if self.stages is None:
            return []
        if not isinstance(self.stages, list):
            return [f'stages: {self.stages!r} is not a list of mappings such as [{{"train": "head"}}]']
        if not self.stages:
            return ["stages: the list is empty: leave it out, or give at least one stage"]
        errors = []
        for number, stage in enumerate(self.stages):
            errors += _check_stage(f"stages[{number}]", stage, self.is_adapter)
        if self.method not in ("scratch", "full") and not self.is_adapter:
            errors.append(
                f"stages and method: {self.method} contradict each other: with stages of your own, method "
                "is scratch or full, which says where the weights come from, or an adapter of peft"
            )
        return errors


def _check_stage(where: str, stage: Any, is_adapter: bool) -> list[str]:
    if not isinstance(stage, dict) or "train" not in stage:
        return [f"{where}: {stage!r} is not a mapping with `train`"]
    train, named = stage["train"], ("head", "all", "bias", "norm", "adapters")
    last = isinstance(train, dict) and list(train) == ["last"] and type(train["last"]) is int and train["last"] > 0
    patterns = isinstance(train, list) and train and all(isinstance(pattern, str) for pattern in train)
    if not (train in named or last or patterns):
        expected = f"one of {', '.join(named)}, a mapping `last: n`, or a list of module names"
        return [f"{where}.train: {train!r} is not {expected}"]
    if is_adapter and train not in ("head", "adapters"):
        return [f"{where}.train: {train!r} would not be saved with an adapter: expected head or adapters"]
    if train == "adapters" and not is_adapter:
        return [f"{where}.train: adapters needs a method that adds them, such as method: lora"]
    name = str(stage.get("name", "stage"))
    if not re.fullmatch(r"\w[\w.-]*", name):
        return [f"{where}.name: {name!r} names a folder: use letters, digits, `-`, `_` and `.`"]
    return []
