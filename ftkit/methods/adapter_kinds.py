"""The adapters, their options, and their hooks."""

import dataclasses
from functools import cache
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ftkit.config import MethodArguments
from ftkit.errors import Advice, UserError, nearest
from ftkit.methods.adalora import AdaLora
from ftkit.methods.adapter_hooks import AdapterHooks

# Variants of PEFT's LoRA that ftkit names as methods, and the option that selects them.
LORA_VARIANTS: dict[str, dict[str, Any]] = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
_IA3: dict[str, Any] = {"feedforward_modules": []}  # scale a layer's output, never its input
_DEFAULTS = LORA_VARIANTS | {"ia3": _IA3}
HOOKS = {"adalora": AdaLora()}  # PEFT's name of the adapter -> its hooks
_NO_HOOKS = AdapterHooks()


@cache
def adapter_configs() -> dict[str, type]:
    """PEFT's configuration classes by method, for the tuners that adapt modules and can save a head."""
    found = {}
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        tuner, options = PEFT_TYPE_TO_TUNER_MAPPING[kind], {f.name for f in dataclasses.fields(config)}
        if issubclass(tuner, BaseTuner) and {"target_modules", "modules_to_save"} <= options:
            found[kind.value.lower()] = config
    return dict(sorted((found | dict.fromkeys(LORA_VARIANTS, found["lora"])).items()))


def hooks_of(model: nn.Module) -> AdapterHooks:
    """The hooks of a model's adapters; without adapters, hooks that do nothing."""
    return hooks_for(model.active_peft_config.peft_type.value.lower()) if isinstance(model, PeftModel) else _NO_HOOKS


def hooks_for(method: str) -> AdapterHooks:
    """The hooks of a method's adapters."""
    return HOOKS.get(method, _NO_HOOKS)


def adapter_options(args: MethodArguments, steps: int) -> dict[str, Any]:
    """The options of the method's adapter: ftkit's defaults, overridden by the recipe's options.

    Args:
        steps: the number of optimizer steps that train adapters.

    Raises:
        UserError: options contradict each other, or the training is too short for the adapter.
    """
    given = args.adapter_args or {}
    return _DEFAULTS.get(args.method, {}) | hooks_for(args.method).options(given, steps) | given


def adapter_config(method: str, options: dict[str, Any]) -> PeftConfig:
    """PEFT's configuration with these options.

    Raises:
        UserError: PEFT refuses them.
    """
    try:
        return adapter_configs()[method](**options)
    except (ValueError, TypeError) as error:
        raise UserError(f"adapter_args: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of an error without a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_adapter_args(method: MethodArguments) -> list[str]:
    """The errors in the options of an adapter, one sentence each; none if they are not a mapping."""
    config, given = adapter_configs()[method.method], method.adapter_args or {}
    if not isinstance(given, dict):
        return []
    options = sorted(f.name for f in dataclasses.fields(config) if f.init)
    errors: list[str] = []
    for key in given:
        if key not in options:
            errors.append(
                f"adapter_args: {method.method} has no option {key!r}{nearest(key, options)}: {', '.join(options)}"
            )
        elif key in ("inference_mode", "task_type"):
            message = f"adapter_args: {key} is not for image classifiers: leave it out"
            errors.append(Advice(message, {"adapter_args": _without(given, key)}))
    # PEFT would accept these silently, or raise an error about something else:
    for option in dataclasses.fields(config):
        number = isinstance(option.default, (int, float)) and not isinstance(option.default, bool)
        if number and isinstance(given.get(option.name), str):
            errors.append(f"adapter_args: {option.name}: {given[option.name]!r} is not a number")
    saved = given.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        errors.append(f"adapter_args: modules_to_save: {saved!r} is not a list of names")
    for key in ("layers_to_transform", "layers_pattern"):
        if given.get(key) is not None and not given.get("target_modules"):
            message = f"adapter_args: {key} chooses among target_modules: name these too, or leave it out"
            errors.append(Advice(message, {"adapter_args": _without(given, key)}))
    if str(given.get("init_lora_weights", "")).startswith("pissa_niter") and not method.merge_adapters:
        errors.append(
            Advice(
                f"adapter_args: init_lora_weights: {given['init_lora_weights']} is random, and a reload could not "
                "repeat it: use pissa, or merge_adapters: true",
                {"adapter_args": given | {"init_lora_weights": "pissa"}},
            )
        )
    return errors


def _without(given: dict[str, Any], key: str) -> dict[str, Any] | None:
    return {name: value for name, value in given.items() if name != key} or None
