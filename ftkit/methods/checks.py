"""What is wrong with the method of a configuration: its name, the options of adapters, what trains."""

from ftkit.config import MethodArguments, weights_file
from ftkit.config.arguments.training import sharding_of
from ftkit.config.configuration import Config
from ftkit.errors import nearest
from ftkit.methods.adapter_kinds import adapter_configs, check_adapter_args, hooks_for
from ftkit.methods.plan import METHODS, is_adapter, starts_from_trained_weights
from ftkit.methods.trainable import check_train
from ftkit.models.checks import OWN_MODELS


def check(config: Config) -> list[str]:
    """Everything that is wrong with the method, its stages, and what it does not go with, a sentence each.

    Values of a wrong type or form are skipped: `MethodArguments.check` reports them.
    """
    method, name = config.method, config.method.method
    if is_adapter(name) and name not in adapter_configs():
        valid = [*METHODS, *adapter_configs()]
        return [f"method: {name!r} is unknown{nearest(name, valid)}: expected {', '.join(valid)}"]
    errors = _check_adapter(method) if is_adapter(name) else _check_plan(method)
    if (name == "surgical") != (method.surgical_groups is not None):
        errors.append(f"surgical_groups belongs to method: surgical, and only there (method: {name})")
    for number, stage in enumerate(method.stages if isinstance(method.stages, list) else []):
        is_stage = isinstance(stage, dict) and "train" in stage
        if is_stage and (wrong := check_train(stage["train"], is_adapter(name))):
            errors.append(f"stages[{number}].train: {wrong}")
    sharded = bool(sharding_of(vars(config.training)))
    return errors + _check_weights(config) + hooks_for(name).contradictions(config.loss, sharded)


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
    if method.stages is not None and not METHODS[method.method].takes_stages:
        errors.append(
            f"stages and method: {method.method} contradict each other: with stages of your own, method is "
            f"{' or '.join(name for name, row in METHODS.items() if row.takes_stages)}, which says where the weights "
            "come from, or an adapter of peft"
        )
    return errors


def _check_weights(config: Config) -> list[str]:
    """Whether the method starts from weights that the model has."""
    name, model, file = config.method.method, config.model.model, weights_file(config.model.model)
    if starts_from_trained_weights(name) and model in OWN_MODELS:
        return [
            f"method: {name} starts from trained weights, and model: {model} has none: use method: scratch, or give "
            "the folder of a trained model"
        ]
    if file is not None and not starts_from_trained_weights(name):
        return [f"method: {name} starts from random weights, and {model} holds trained ones: use another"]
    if file is not None and is_adapter(name) and not config.method.merge_adapters:
        return [f"merge_adapters: an adapter cannot name {model} as what it belongs to: set it to true"]
    return []
