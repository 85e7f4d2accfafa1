"""What is wrong with the names that a recipe may give: methods, options of adapters, what trains."""

from typing import Any

from ftkit.config import MethodArguments, weights_file
from ftkit.config.configuration import Config
from ftkit.config.training import sharding_of
from ftkit.errors import nearest
from ftkit.methods.adapter_kinds import adapter_configs, check_adapter_args
from ftkit.methods.plan import METHODS, is_adapter
from ftkit.models.checks import OWN_MODELS


def check(config: Config) -> list[str]:
    """All that is wrong with a method, its stages, and what else contradicts the method, a sentence each."""
    method, name = config.method, config.method.method
    if is_adapter(name) and name not in adapter_configs():
        valid = [*METHODS, *adapter_configs()]
        return [f"method: {name!r} is unknown{nearest(name, valid)}: expected {', '.join(valid)}"]
    errors = _check_adapter(method) if is_adapter(name) else _check_plan(method)
    if (name == "surgical") != (method.surgical_groups is not None):
        errors.append(f"surgical_groups belongs to method: surgical, and only there (method: {name})")
    for number, stage in enumerate(method.stages if isinstance(method.stages, list) else []):
        if isinstance(stage, dict) and "train" in stage and (wrong := _check_train(stage["train"], is_adapter(name))):
            errors.append(f"stages[{number}].train: {wrong}")
    return errors + _check_beside(config)


def _check_adapter(method: MethodArguments) -> list[str]:
    errors = check_adapter_args(method)
    if method.train_batchnorm_stats:
        errors.append(
            "train_batchnorm_stats: true would move statistics that are not saved with an adapter: leave it out"
        )
    return errors


def _check_plan(method: MethodArguments) -> list[str]:
    errors = [
        f"{option} belongs to the methods of peft, such as lora, and only there (method: {method.method})"
        for option in ("adapter_args", "merge_adapters")
        if getattr(method, option)
    ]
    if method.stages is not None and method.method not in ("scratch", "full"):
        errors.append(
            f"stages and method: {method.method} contradict each other: with stages of your own, method is scratch or "
            "full, which says where the weights come from, or an adapter of peft"
        )
    return errors


def _check_train(train: Any, has_adapters: bool) -> str | None:
    named = ("head", "all", "bias", "norm", "adapters")
    last = isinstance(train, dict) and list(train) == ["last"] and type(train["last"]) is int and train["last"] > 0
    patterns = isinstance(train, list) and train and all(isinstance(pattern, str) for pattern in train)
    if not (train in named or last or patterns):
        return f"{train!r} is not one of {', '.join(named)}, a mapping `last: n`, or a list of module names"
    if has_adapters and train not in ("head", "adapters"):
        return f"{train!r} would not be saved with an adapter: expected head or adapters"
    if train == "adapters" and not has_adapters:
        return "adapters needs a method that adds them, such as method: lora"
    return None


def _check_beside(config: Config) -> list[str]:
    """What of the model, the loss and the machine contradicts the method."""
    method, model, ema, errors = config.method.method, config.model.model, config.loss.ema_decay, []
    if method != "scratch" and model in OWN_MODELS:
        errors.append(
            f"method: {method} starts from trained weights, and model: {model} has none: use method: scratch, or give "
            "the folder of a trained model"
        )
    if method == "scratch" and weights_file(model) is not None:
        errors.append(f"method: scratch starts from random weights, and {model} holds trained ones: use another")
    if weights_file(model) is not None and is_adapter(method) and not config.method.merge_adapters:
        errors.append(f"merge_adapters: an adapter cannot name {model} as what it belongs to: set it to true")
    if method == "adalora" and ema is not None:
        errors.append(
            f"ema_decay: {ema} brings back ranks that adalora has given away: leave it out, or use method: lora"
        )
    if method == "adalora" and sharding_of(vars(config.training)):
        errors.append(
            "method: adalora needs whole weights, which FSDP and DeepSpeed cut into pieces: use method: lora, or "
            "launch with accelerate_configs/multi_gpu.yaml"
        )
    return errors
