"""The optimizer and the schedule of a stage, of transformers or timm, with a setting for each parameter."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, get_scheduler
from transformers.training_args import OptimizerNames

from ftkit.config.arguments.training import TIMM_OPTIMIZERS, TrainingArguments
from ftkit.errors import Advice, UserError, nearest
from ftkit.methods.parameter_groups import Setting, optimizer_groups

# Optimizers that change weights while other gradients are still being computed.
_WITHIN_BACKWARD = ("lomo", "layerwise")
# The options that each optimizer reads from `optim_args`. Weight decay is always the key `weight_decay`.
_OPTIM_ARGS: dict[str, tuple[str, ...]] = {
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
_BY_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def check_optimizer(optim: str, options: str | None) -> list[str]:
    """The errors in `optim` and `optim_args`, one sentence each."""
    if optim.startswith(TIMM_OPTIMIZERS):
        return _check_timm(optim, options)
    known = [name.value for name in OptimizerNames]
    if optim not in known:
        return [f"optim: {optim!r} is not one of {', '.join(known)}{nearest(optim, known)}"]
    errors: list[str] = []
    if any(part in optim for part in _WITHIN_BACKWARD):
        errors.append(
            Advice(
                f"optim: {optim} changes weights before all gradients are known, so they could not be clipped, "
                "accumulated or checked: use adamw_torch",
                {"optim": "adamw_torch"},
            )
        )
    if options and optim in _OPTIM_ARGS:
        own = _OPTIM_ARGS[optim]
        takes = f"it takes {', '.join(own)}" if own else "it takes none: use the adam_ keys"
        errors += [
            Advice(
                f"optim_args: {optim} has no option {name!r}: {takes}; set weight decay with the key weight_decay",
                {"optim_args": ",".join(part for part in options.split(",") if _option_of(part) in own) or None},
            )
            for name in map(_option_of, options.split(","))
            if name not in own
        ]
    return errors


def _option_of(part: str) -> str:
    return part.partition("=")[0].strip()


def _check_timm(optim: str, options: str | None) -> list[str]:
    from timm.optim import get_optimizer_info, list_optimizers  # late: most recipes do not use timm's

    known, name = [str(found) for found in list_optimizers()], optim.removeprefix(TIMM_OPTIMIZERS)
    errors: list[str] = [] if name in known else [f"optim: timm has no optimizer {name!r}{nearest(name, known)}"]
    if name in known and get_optimizer_info(name).second_order:
        message = f"optim: {optim} needs second-order gradients, which the Trainer does not compute: use adamw_torch"
        errors.append(Advice(message, {"optim": "adamw_torch"}))
    try:
        _timm_options(options)
    except ValueError as error:
        errors.append(str(error))
    return errors


def make_optimizer(args: TrainingArguments, model: nn.Module, settings: dict[str, Setting]) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters.

    Args:
        settings: learning rate and weight decay of every parameter, by name.

    Raises:
        UserError: a package is missing, or an option is unknown, missing or of the wrong type.
    """
    with _explained(args, "optim", "optim_args"):
        make, options = _maker(args, model)
        low_rank = options.pop("params", [])  # groups of GaLore and APOLLO, which project some matrices
        muon = args.optim.startswith(TIMM_OPTIMIZERS) and "muon" in args.optim
        return make(optimizer_groups(model, settings, args.weight_decay, muon, low_rank), **options)


def _maker(args: TrainingArguments, model: Any) -> tuple[Any, dict[str, Any]]:
    """The class or function of the optimizer, and its options."""
    if not args.optim.startswith(TIMM_OPTIMIZERS):
        from transformers import Trainer  # late: a misspelt name is reported before it is loaded

        return Trainer.get_optimizer_cls_and_kwargs(args, model)
    from timm.optim import create_optimizer_v2

    name = args.optim.removeprefix(TIMM_OPTIMIZERS)
    options = {"lr": args.learning_rate, **_timm_options(args.optim_args)}
    return (lambda groups, **options: create_optimizer_v2(groups, opt=name, **options)), options


def _timm_options(text: str | None) -> dict[str, Any]:
    """`optim_args`, such as `betas=(0.9, 0.95),eps=1e-6`, as keyword arguments.

    Raises:
        ValueError: the text is not a list of `name=value`.
    """
    try:
        call: Any = ast.parse(f"f({text or ''})", mode="eval").body
        if call.args:
            raise ValueError("a value without a name")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError):
        raise ValueError(f"optim_args: {text!r} is not a list such as eps=1e-6,betas=(0.9, 0.95)") from None


def make_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The learning-rate schedule. One that follows a metric gets its `mode` from `greater_is_better`.

    Raises:
        UserError: an option is unknown, missing or of the wrong type.
    """
    given: Any = args.lr_scheduler_kwargs or {}  # a mapping, once checked
    options = dict(given)
    if args.lr_scheduler_type in _BY_METRIC:
        options["mode"] = "max" if args.greater_is_better else "min"
    with _explained(args, "lr_scheduler_type", "lr_scheduler_kwargs"):
        return get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, options)


@contextmanager
def _explained(args: TrainingArguments, *names: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        values = args.to_dict()  # with enums as strings
        given = ", ".join(f"{name}: {values[name]}" for name in names)
        raise UserError(f"{given}: {error}") from error
