"""Checks of the losses and metrics that a recipe names."""

from typing import Any

from ftkit.config.configuration import Config
from ftkit.config.values import from_json
from ftkit.errors import Advice, nearest
from ftkit.tasks import Task


def check(config: Config, task: type[Task]) -> list[str]:
    """Errors in the loss and in the metric that chooses the checkpoint, one sentence each."""
    args, errors = config.loss, list[str]()
    if args.loss not in task.losses:
        errors.append(f"loss: {args.loss!r} is not one of {', '.join(task.losses)}{nearest(args.loss, task.losses)}")
    for key, loss in task.loss_options.items():
        if getattr(args, key) != getattr(type(args), key) and args.loss != loss:
            message = f"{key} has no effect with loss: {args.loss}: leave it out, or use loss: {loss}"
            errors.append(Advice(message, {key: None}))
    if (classes := config.data.classes) and len(classes) == 1 and "," not in classes[0]:
        errors.append(f"classes: {classes[0]!r} is one class, but a classifier needs at least two: add another")
    return errors + _check_best(vars(config.training), task.validation())


def _check_best(values: dict[str, Any], known: dict[str, bool]) -> list[str]:
    """Errors in `metric_for_best_model`, and in keys that contradict its direction, one sentence each."""
    metric, given = values["metric_for_best_model"], values["greater_is_better"]
    metric = "loss" if metric is None else metric
    name, errors = metric.removeprefix("eval_"), list[str]()
    if name not in known:
        hint = nearest(name, known)
        return [f"metric_for_best_model: {metric!r} is not a metric of validation{hint}: {', '.join(known)}"]
    if given is not None and given != known[name]:
        errors.append(
            Advice(
                f"greater_is_better: {str(given).lower()} would choose the checkpoint with the worst {metric}: "
                "leave it out",
                {"greater_is_better": None},
            )
        )
    options = from_json(values["lr_scheduler_kwargs"] or "{}")
    mode = options.get("mode") if isinstance(options, dict) else None
    wanted = "max" if known[name] else "min"
    if values["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy") and mode not in (None, wanted):
        errors.append(
            Advice(
                f"lr_scheduler_kwargs: mode: {mode} contradicts metric_for_best_model: {metric}, which the schedule "
                f"follows: leave mode out, or set it to {wanted}",
                {"lr_scheduler_kwargs": options | {"mode": wanted}},
            )
        )
    return errors
