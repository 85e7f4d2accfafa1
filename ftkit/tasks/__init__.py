"""What a right answer is. The rest of ftkit asks the task itself, and never compares its name.

To add a task, add a package here and a row to `TASKS`.
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
Task = SingleLabel  # for annotations, like `Predictions`: a union once there are several tasks
TASKS: tuple[type[Task], ...] = (SingleLabel,)


def task_of(features: Features) -> Task:
    """The task of a dataset, or of stored predictions, with these columns.

    Raises:
        ValueError: no task has such columns.
    """
    for kind in TASKS:
        if (task := kind.of_features(features)) is not None:
            return task
    raise ValueError(f"no task has the columns {', '.join(features)}")


def task_of_config(config: PreTrainedConfig) -> Task:
    """The task of a model with this config.

    Raises:
        ValueError: no task has such a config.
    """
    for kind in TASKS:
        if (task := kind.of_config(config)) is not None:
            return task
    raise ValueError(f"no task has a model of the type {config.model_type}")
