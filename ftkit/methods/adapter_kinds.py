"""Which adapters there are, and the options that they take."""

import dataclasses

from ftkit.config import MethodArguments
from ftkit.errors import nearest

# Variants of PEFT's LoRA that have a name of their own, and the option that makes them.
LORA_VARIANTS = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


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


def check_adapter_args(method: MethodArguments) -> list[str]:
    """Everything that is wrong with the options of an adapter, a sentence each."""
    if not isinstance(given := method.adapter_args or {}, dict):
        return []  # which `MethodArguments.check` says
    config, errors = adapter_configs()[method.method], []
    options = sorted(f.name for f in dataclasses.fields(config) if f.init)
    for key in given:
        if key not in options:
            errors.append(
                f"adapter_args: {method.method} has no option {key!r}{nearest(key, options)}: {', '.join(options)}"
            )
        elif key in ("inference_mode", "task_type"):
            errors.append(f"adapter_args: {key} is not for a classifier of images: leave it out")
    # What PEFT would accept without a word, or answer with an error about something else:
    for option in dataclasses.fields(config):
        number = isinstance(option.default, (int, float)) and not isinstance(option.default, bool)
        if number and isinstance(given.get(option.name), str):
            errors.append(f"adapter_args: {option.name}: {given[option.name]!r} is not a number")
    saved = given.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        errors.append(f"adapter_args: modules_to_save: {saved!r} is not a list of names")
    for key in ("layers_to_transform", "layers_pattern"):
        if given.get(key) is not None and not given.get("target_modules"):
            errors.append(f"adapter_args: {key} needs target_modules beside it, to choose from")
    if str(given.get("init_lora_weights", "")).startswith("pissa_niter") and not method.merge_adapters:
        errors.append(
            f"adapter_args: init_lora_weights: {given['init_lora_weights']} draws at random what a reload would have "
            "to repeat: use pissa, or merge_adapters: true"
        )
    return errors
