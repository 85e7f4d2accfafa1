"""Checks of the method in a configuration: its name, the options of adapters, the stages."""

from ftkit.config import MethodArguments, local_model, weights_file
from ftkit.config.arguments.training import sharding_of
from ftkit.config.configuration import Config
from ftkit.errors import Advice, nearest
from ftkit.methods.adapter_kinds import adapter_configs, check_adapter_args, hooks_for
from ftkit.methods.plan import METHODS, is_adapter, starts_from_trained_weights
from ftkit.methods.trainable import check_train
from ftkit.models.checks import OWN_MODELS


def check(config: Config) -> list[str]:
    """The errors in the method, its stages, and its combination with other settings, one sentence each.

    Values of a wrong type or form are skipped: `MethodArguments.check` reports them.
    """
    method, name = config.method, config.method.method
    if is_adapter(name) and name not in adapter_configs():
        valid = [*METHODS, *adapter_configs()]
        return [f"method: {name!r} is unknown{nearest(name, valid)}: expected {', '.join(valid)}"]
    errors = _check_adapter(method) if is_adapter(name) else _check_plan(method)
    if name == "surgical" and method.surgical_groups is None:
        errors.append("surgical_groups is missing: name the layer groups that method: surgical trains")
    if name != "surgical" and method.surgical_groups is not None:
        message = f"surgical_groups has no effect with method: {name}: leave it out, or use method: surgical"
        errors.append(Advice(message, {"surgical_groups": None}))
    for number, stage in enumerate(method.stages if isinstance(method.stages, list) else []):
        is_stage = isinstance(stage, dict) and "train" in stage
        if is_stage and (wrong := check_train(stage["train"], is_adapter(name))):
            errors.append(f"stages[{number}].train: {wrong}")
    sharded = bool(sharding_of(vars(config.training)))
    return errors + _check_weights(config) + hooks_for(name).contradictions(config.loss, sharded)


def _check_adapter(method: MethodArguments) -> list[str]:
    errors = check_adapter_args(method)
    if method.train_batchnorm_stats:
        message = "train_batchnorm_stats: true would move statistics, which are not saved with adapters: leave it out"
        errors.append(Advice(message, {"train_batchnorm_stats": None}))
    return errors


def _check_plan(method: MethodArguments) -> list[str]:
    errors: list[str] = [
        Advice(
            f"{option} has no effect with method: {method.method}: leave it out, or use an adapter, such as method: "
            "lora",
            {option: None},
        )
        for option in ("adapter_args", "merge_adapters")
        if getattr(method, option)
    ]
    if method.stages is not None and not METHODS[method.method].takes_stages:
        errors.append(
            Advice(
                f"stages and method: {method.method} contradict each other: leave stages out, or use method: "
                f"{' or '.join(name for name, row in METHODS.items() if row.takes_stages)} (random or trained "
                "weights), or an adapter of peft",
                {"stages": None},
            )
        )
    return errors


def _check_weights(config: Config) -> list[str]:
    """Whether the model has the weights, random or trained, that the method starts from."""
    name, model, file = config.method.method, config.model.model, weights_file(config.model.model)
    if starts_from_trained_weights(name) and model in OWN_MODELS:
        return [
            Advice(
                f"method: {name} starts from trained weights, and model: {model} has none: use method: scratch, or "
                "give the folder of a trained model",
                {"method": "scratch"},
            )
        ]
    if file is not None and not starts_from_trained_weights(name):
        message = f"method: {name} starts from random weights, and {model} holds trained ones: use method: full"
        return [Advice(message, {"method": "full"})]
    if file is not None and is_adapter(name) and not config.method.merge_adapters:
        message = f"merge_adapters: an adapter cannot name a file, {model}, as its base model: set it to true"
        return [Advice(message, {"merge_adapters": True})]
    if config.pushes and is_adapter(name) and local_model(model) is not None and not config.method.merge_adapters:
        message = (
            f"push_to_hub: others would load these adapters on top of {model}, which is not on the Hub: push that "
            "model first and train from its name there, or set merge_adapters to true"
        )
        return [Advice(message, {"merge_adapters": True})]
    return []
