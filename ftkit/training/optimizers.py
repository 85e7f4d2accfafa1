"""The optimizer and the schedule of a stage: transformers' and timm's, with a setting for each parameter."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, Trainer, get_scheduler

from ftkit.config.training import TIMM_OPTIMIZERS, TrainingArguments, timm_optimizer_options
from ftkit.errors import UserError
from ftkit.methods.parameter_groups import Setting, optimizer_groups

_BY_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def make_optimizer(args: TrainingArguments, model: nn.Module, settings: dict[str, Setting]) -> torch.optim.Optimizer:
    """The optimizer of what trains of a model.

    Args:
        settings: learning rate and weight decay of every parameter, by name.

    Raises:
        UserError: a package is missing, or an option is unknown, missing or of another type.
    """
    with _explained(args, "optim", "optim_args"):
        make, options = _maker(args, model)
        low_rank = options.pop("params", [])  # of GaLore and APOLLO, which treat some matrices otherwise
        muon = args.optim.startswith(TIMM_OPTIMIZERS) and "muon" in args.optim
        return make(optimizer_groups(model, settings, args.weight_decay, muon, low_rank), **options)


def _maker(args: TrainingArguments, model: nn.Module) -> tuple[Any, dict[str, Any]]:
    """What makes the optimizer, and its options."""
    if not args.optim.startswith(TIMM_OPTIMIZERS):
        return Trainer.get_optimizer_cls_and_kwargs(args, model)
    from timm.optim import create_optimizer_v2

    name = args.optim.removeprefix(TIMM_OPTIMIZERS)
    options = {"lr": args.learning_rate, **timm_optimizer_options(args.optim_args)}
    return (lambda groups, **options: create_optimizer_v2(groups, opt=name, **options)), options


def make_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The schedule of the learning rate; one that goes by a metric knows which of two values is the better one.

    Raises:
        UserError: an option is unknown, missing or of another type.
    """
    options = dict(args.lr_scheduler_kwargs or {})
    if args.lr_scheduler_type in _BY_METRIC:
        options["mode"] = "max" if args.greater_is_better else "min"
    with _explained(args, "lr_scheduler_type", "lr_scheduler_kwargs"):
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=options,
        )


@contextmanager
def _explained(args: TrainingArguments, *names: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        values = args.to_dict()  # enums as their texts
        given = ", ".join(f"{name}: {values[name]}" for name in names)
        raise UserError(f"{given}: {error}") from error
