"""What is wrong with the names that a recipe may give: methods, options of adapters, what trains."""

from ftkit.config import MethodArguments
from ftkit.errors import nearest
from ftkit.methods.adapter_kinds import adapter_configs, check_adapter_args
from ftkit.methods.plan import METHODS, is_adapter
from ftkit.methods.trainable import check_train


def check(method: MethodArguments) -> list[str]:
    """Everything that is wrong with a method and its stages, a sentence each.

    Args:
        method: whose types and forms are right, as `MethodArguments.check` finds.
    """
    name = method.method
    if is_adapter(name) and name not in adapter_configs():
        valid = [*METHODS, *adapter_configs()]
        return [f"method: {name!r} is unknown{nearest(name, valid)}: expected {', '.join(valid)}"]
    errors = _check_adapter(method) if is_adapter(name) else _check_plan(method)
    if (name == "surgical") != (method.surgical_groups is not None):
        errors.append(f"surgical_groups belongs to method: surgical, and only there (method: {name})")
    for number, stage in enumerate(method.stages or []):
        if wrong := check_train(stage["train"], is_adapter(name)):
            errors.append(f"stages[{number}].train: {wrong}")
    return errors


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
