"""What a right answer is. The rest of ftkit asks the task of a dataset, and never which task it is.

A task is a module here, and a row in `TASKS`.
"""

from datasets import Features
from transformers import PreTrainedConfig

from ftkit.tasks.parts import Drawing, Metric, Section, shortened
from ftkit.tasks.single_label import Predictions, SingleLabel

__all__ = [
    "TASKS",
    "Drawing",
    "Metric",
    "Predictions",
    "Section",
    "SingleLabel",
    "Task",
    "shortened",
    "task_of",
    "task_of_config",
]
Task = SingleLabel  # what annotations say, as `Predictions`; unions when there are several
TASKS: tuple[type[Task], ...] = (SingleLabel,)


def task_of(features: Features) -> Task:
    """The task of a dataset, or of stored predictions.

    Args:
        features: their columns.

    Raises:
        ValueError: no task has such columns.
    """
    for kind in TASKS:
        if (task := kind.of_features(features)) is not None:
            return task
    raise ValueError(f"no task has the columns {', '.join(features)}")


def task_of_config(config: PreTrainedConfig) -> Task:
    """The task of a model, by its config.

    Raises:
        ValueError: no task has such a config.
    """
    for kind in TASKS:
        if (task := kind.of_config(config)) is not None:
            return task
    raise ValueError(f"no task has a model of the type {config.model_type}")
