"""Read configurations; the modules that define names check them."""

from pathlib import Path

from ftkit.config.configuration import Config, Evaluation
from ftkit.config.loader import Owners, read_config, read_evaluation
from ftkit.data import checks as data
from ftkit.data.augmentation.augment import AUGMENTATIONS
from ftkit.methods import checks as methods
from ftkit.methods.adapter_kinds import LORA_VARIANTS
from ftkit.methods.plan import METHODS, default_learning_rate
from ftkit.models import checks as models
from ftkit.tasks import DEFAULT_TASK
from ftkit.tasks import checks as tasks
from ftkit.training.loop.optimizers import check_optimizer
from ftkit.training.trackers import check_trackers


def _check(config: Config) -> list[str]:
    return [
        *data.check(config.data),
        *models.check(config.model),
        *methods.check(config),
        *tasks.check(config, DEFAULT_TASK),
        *check_optimizer(config.training.optim, config.training.optim_args),
        *check_trackers(config.training.report_to),
    ]


def _check_evaluation(config: Evaluation) -> list[str]:
    return data.check(config.data) + models.check_saved(config.evaluation.model)


OWNERS = Owners(
    _check,
    default_learning_rate,
    DEFAULT_TASK.metrics[DEFAULT_TASK.score].validation or "loss",
    {
        "model": (*models.OWN_MODELS, "timm/<architecture>"),
        "augment": AUGMENTATIONS,
        "loss": [f"{name} ({(loss.__doc__ or '').rstrip('.')})" for name, loss in DEFAULT_TASK.losses.items()],
        "metric_for_best_model": DEFAULT_TASK.validation(),
        "method": (*METHODS, *LORA_VARIANTS, "any adapter of peft"),
    },
)


def parse_config(arguments: list[str], default_recipe: Path | None = None) -> Config:
    """The checked configuration of a run: see `read_config`."""
    return read_config(arguments, OWNERS, default_recipe)


def parse_evaluation(arguments: list[str]) -> Evaluation:
    """The checked configuration of an evaluation: see `read_evaluation`."""
    return read_evaluation(arguments, _check_evaluation)
