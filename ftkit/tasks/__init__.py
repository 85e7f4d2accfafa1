"""Tasks: targets, losses, metrics and how results are shown. The rest of ftkit does not depend on the task.

To add a task, add a package here, and its class to `TASKS`. It has these members, which `SingleLabel` documents.

- about itself: `hub_task`, `logits_meaning`, `limit`, `size`, and `names`, one for each logit, which exports,
  comparisons, card and demo show;
- losses: `losses`, `loss_options`, `loss`, `mixable`;
- metrics: `metrics`, `score`, `score_metric`, `summary`, `compute_metrics`, `headline`, `compare`;
- validation: `validation`, `validate`, `evaluation_loss`, `validation_loss`;
- recognised from: `of_features`, `of_config`, and, in raw data, `usual_columns`, `target_column`, `lacks_targets`
  and `read`;
- targets: `join_similar`, `look_like`, `check_targets`, `keep_classes`, `some_of_each`, `carve`, `encode`, `as_known`,
  `counts`, `tensor`, `compact`;
- models: `config_options`;
- answers: `decide`, `agreement`, `probabilities`, `likeliest`;
- stored predictions: `predictions`, `from_table`;
- report and card: `section`, `data_template`, `gallery`, `caption`, `errors`, `card_figure`.
"""

from datasets import Features
from transformers import PreTrainedConfig

from ftkit.tasks.parts import Drawing, Metric, Section, shortened
from ftkit.tasks.single_label import Predictions, SingleLabel

__all__ = [
    "DEFAULT_TASK",
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
TASKS: tuple[type[Task], ...] = (SingleLabel,)  # the first that recognises the columns or the config is used
DEFAULT_TASK = SingleLabel  # the task of every recipe: there is no key to choose another yet


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
    raise ValueError(f"no task has a model with problem_type: {config.problem_type}")
