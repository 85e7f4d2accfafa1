"""Checks of the names in a recipe's data section: augmentations, their options, and timm's options."""

import inspect
import math
from typing import Any

from ftkit.config import DataArguments
from ftkit.data.augmentation.augment import AUGMENTATIONS
from ftkit.errors import Advice, nearest

# Options of timm's transform that ftkit sets, or handles itself: erasing works on the batch.
_NOT_OPTIONS = {"img_size", "mean", "std", "normalize", "use_prefetcher", "separate", "re_prob", "re_mode", "re_count"}
_NOT_OPTIONS |= {"re_num_splits", "naflex", "patch_size", "max_seq_len", "patchify"}
_NOT_OPTIONS |= {"patchify_channels_last", "patchify_flatten"}


def check(data: DataArguments) -> list[str]:
    """All errors in the names of `augment` and `image_transform`, one sentence each."""
    steps = data.augment or []
    names = [str(next(iter(step), "") if isinstance(step, dict) else step) for step in steps]
    errors = [error for step in steps for error in _check_augmentation(step)]
    errors += [f"augment: {name} is listed twice: keep one" for name in dict.fromkeys(names) if names.count(name) > 1]
    if {"flip", "alternating_flip"} <= set(names):
        kept = [step for step, name in zip(steps, names, strict=True) if name != "alternating_flip"]
        message = "augment: flip and alternating_flip would undo each other: keep one"
        errors.append(Advice(message, {"augment": kept}))
    return errors + (_check_transform(data.image_transform) if isinstance(data.image_transform, dict) else [])


def options(name: str) -> dict[str, Any]:
    """The options of an augmentation with their defaults; a pair of numbers is a tuple."""
    parameters = inspect.signature(AUGMENTATIONS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def _check_augmentation(step: Any) -> list[str]:
    name, given = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (step, {})
    if not isinstance(name, str) or name not in AUGMENTATIONS:
        return [f"augment: {name!r} is not one of {', '.join(AUGMENTATIONS)}{nearest(str(name), list(AUGMENTATIONS))}"]
    known = options(name)
    if not isinstance(given, dict):
        return [f"augment: {name}: {given!r} is not a mapping of {', '.join(known) or 'no options'}"]
    errors = []
    for key, value in given.items():
        default = known.get(key)
        pair = isinstance(default, tuple)
        numbers = value if pair and isinstance(value, list) and len(value) == 2 else [value]
        if default is None:
            errors.append(
                f"augment: {name} has no option {key!r}{nearest(key, list(known))}: {', '.join(known) or 'none'}"
            )
        elif isinstance(default, str):
            if value not in ("zeros", "reflect"):
                errors.append(f"augment: {name}: {key}: {value!r} must be zeros or reflect")
        elif pair != (len(numbers) == 2) or not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
            errors.append(
                f"augment: {name}: {key}: {value!r} must be {'two numbers' if pair else 'a number'}, at least 0"
            )
        elif key in ("probability", "share", "translate") and not 0 <= numbers[0] <= 1:
            errors.append(f"augment: {name}: {key}: {value!r} must be between 0 and 1")
        elif pair and not 0 < numbers[0] <= numbers[1]:
            errors.append(f"augment: {name}: {key}: {value!r} must be two positive numbers, the larger one last")
        elif type(default) is int and type(value) is not int:
            errors.append(f"augment: {name}: {key}: {value!r} must be a whole number of pixels")
    return errors


def _check_transform(given: dict[str, Any]) -> list[str]:
    from ftkit.compat.timm import training_transform_options  # late: few runs use it

    valid = sorted(training_transform_options() - _NOT_OPTIONS)
    return [
        f"image_transform: timm has no option {key!r}{nearest(str(key), valid)}: {', '.join(valid)}"
        for key in given
        if key not in valid
    ]
