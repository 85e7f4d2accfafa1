"""One class per image: targets are class indices int64 (N,), and the softmax of logits (N, C) gives probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Features
from torch.nn import functional as F
from transformers import PreTrainedConfig

from ftkit.config import DataArguments, LossArguments
from ftkit.statistics.significance import compare
from ftkit.tasks.columns import column
from ftkit.tasks.parts import Drawing, Metric, Section
from ftkit.tasks.single_label import answers, matching, presentation, similar, targets
from ftkit.tasks.single_label.losses import LOSSES, OPTIONS, class_shares
from ftkit.tasks.single_label.metrics import METRICS, SCORE, SUMMARY, compute_metrics, headline
from ftkit.tasks.single_label.predictions import Predictions, from_table

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_PROBLEM = "single_label_classification"  # transformers' name for it


@dataclass(frozen=True)
class SingleLabel:
    """Each image shows exactly one of the classes `names`.

    Attributes:
        names: the class names, in the order of the logits.
        hub_task: the Hub's name for the task.
        losses: name in a recipe -> loss.
        loss_options: loss argument -> the only loss that reads it.
        metrics: key in `metrics.json` -> metric.
        score: the key of the main metric, which chooses the checkpoint by default and compares runs. It must be a mean
            over images, and greater is better.
        summary: the keys of `metrics.json` that `run.json` repeats.
        limit: the task's limitation, a sentence of the model card that ends with the class names.
        logits_meaning: how to read the logits, for users of an exported model, whose files hold `class_names`.
        validation_loss: the name of the loss on validation, whichever loss is trained with.
        data_template: the template of the report's table of the splits.
    """

    names: list[str]
    hub_task: ClassVar[str] = "image-classification"
    losses: ClassVar[dict[str, Callable[..., torch.Tensor]]] = LOSSES
    loss_options: ClassVar[dict[str, str]] = OPTIONS
    metrics: ClassVar[dict[str, Metric]] = METRICS
    score: ClassVar[str] = SCORE
    summary: ClassVar[tuple[str, ...]] = SUMMARY
    logits_meaning: ClassVar[str] = (
        "The index of the largest logit is the index of the class in class_names. The softmax of the logits gives "
        "the probabilities."
    )
    limit: ClassVar[str] = "It assigns every image to one of its classes, whatever the image shows"
    validation_loss: ClassVar[str] = "the cross-entropy"
    data_template: ClassVar[str] = "single_label_data"

    # Targets: the column `label` of a dataset

    usual_columns: ClassVar[tuple[str, ...]] = targets.USUAL_NAMES
    target_column = staticmethod(targets.label_column)
    join_similar = staticmethod(matching.join_similar)
    look_like = staticmethod(similar.look_like)
    lacks_targets = staticmethod(targets.lacks_labels)
    check_targets = staticmethod(targets.check_classes)
    keep_classes = staticmethod(targets.keep_classes)
    some_of_each = staticmethod(targets.some_of_each)
    carve = staticmethod(targets.carve)

    @classmethod
    def read(cls, splits: dict[str, Dataset], column: str) -> "SingleLabel":
        """The task with the classes of this target column; see `targets.class_names`."""
        return cls(targets.class_names(splits, column))

    @classmethod
    def of_features(cls, features: Features) -> "SingleLabel | None":
        """The task of data with these columns, or None if they belong to another task."""
        return cls(features["label"].names) if isinstance(features.get("label"), ClassLabel) else None

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "SingleLabel | None":
        """The task of a model with this config, or None for a multi-label or a regression model."""
        if config.problem_type not in (None, _PROBLEM):
            return None
        names: dict[Any, str] = dict(config.id2label or {})
        return cls([names[i] for i in range(len(names))])

    def config_options(self) -> dict[str, Any]:
        """The options of a model's config that depend on the task."""
        numbers = {name: i for i, name in enumerate(self.names)}
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": numbers,
            "problem_type": _PROBLEM,  # makes a pipeline compute scores by softmax
        }

    def encode(self, dataset: Dataset, split: str) -> Dataset:
        """`dataset` with its labels encoded as this task's classes; see `targets.as_classes`."""
        return targets.as_classes(dataset, self.names, split)

    def as_known(self, dataset: Dataset, args: DataArguments, what: str) -> Dataset:
        """`dataset` with its labels renumbered by class name to this task's; see `matching.as_known`."""
        return matching.as_known(dataset, self.names, args, what)

    def tensor(self, dataset: Dataset) -> torch.Tensor:
        """The targets of a dataset, for training: int64 (N,)."""
        return torch.tensor(column(dataset, "label"))

    def counts(self, labels: torch.Tensor) -> dict[str, int]:
        """The number of images of each class, by name."""
        return dict(zip(self.names, torch.bincount(labels, minlength=len(self.names)).tolist(), strict=True))

    def compact(self, labels: torch.Tensor) -> np.ndarray:
        """The targets as a run stores them, so that a resume detects changed labels: int32 (N,)."""
        return labels.cpu().numpy().astype(np.int32)

    # Training

    def loss(self, args: LossArguments, label_smoothing: float) -> Loss:
        """The loss of a run: (logits float (N, C), targets int64 (N,) or float (N, C)) -> the mean, float ().

        Args:
            label_smoothing: the share of each target that is spread over all classes, in every loss.
        """
        compute = LOSSES[args.loss]
        return lambda logits, labels: compute(logits.float(), labels, label_smoothing, args)

    def mixable(self, labels: torch.Tensor) -> torch.Tensor:
        """The targets as shares of classes, which mixup and cutmix can average: float (N, C)."""
        return class_shares(labels, len(self.names))

    def evaluation_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss of a validation batch, float ()."""
        return F.cross_entropy(logits, labels)

    def validate(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics that are logged on validation and may choose the checkpoint, from logits (N, C) and labels (N,).

        All are means over images: the `Trainer`'s own loss averages batches, which is wrong if the last one is short.
        """
        rows = np.arange(len(labels))
        found = Predictions(rows, np.zeros(len(rows), np.uint64), labels, np.asarray(logits), self)
        return {metric.validation: metric.compute(found) for metric in self.metrics.values() if metric.validation}

    @classmethod
    def validation(cls) -> dict[str, bool]:
        """The names of the metrics of `validate`, the loss first, and whether greater is better."""
        rows = sorted(cls.metrics.values(), key=lambda metric: metric.validation != "loss")
        return {metric.validation: metric.higher_is_better for metric in rows if metric.validation}

    # Answers

    decide = staticmethod(answers.decide)
    agreement = staticmethod(answers.agreement)
    probabilities = staticmethod(answers.probabilities)

    def likeliest(self, logits: torch.Tensor, count: int) -> list[list[tuple[str, float]]]:
        """The `count` likeliest classes of each image with their probabilities; see `answers.likeliest`."""
        found = zip(*answers.likeliest(logits, count), strict=True)
        return [[(self.names[c], p) for c, p in zip(*row, strict=True)] for row in found]

    # Evaluation

    def predictions(
        self,
        index: np.ndarray,
        hashes: np.ndarray,
        labels: np.ndarray,
        logits: np.ndarray,
        about: dict[str, list] | None = None,
    ) -> Predictions:
        """The predictions that an evaluation stores; see `Predictions`."""
        return Predictions(index, hashes, labels, logits.astype(np.float32), self, about or {})

    def from_table(self, table: pa.Table) -> Predictions:
        """The predictions stored in `table`; see `Predictions.to_table`."""
        return from_table(table, self)

    compute_metrics = staticmethod(compute_metrics)
    headline = staticmethod(headline)
    gallery = staticmethod(presentation.gallery)
    caption = staticmethod(presentation.caption)
    errors = staticmethod(presentation.errors)
    compare = staticmethod(compare)

    @property
    def score_metric(self) -> Metric:
        """The row of the metric `score`."""
        return self.metrics[self.score]

    @property
    def size(self) -> str:
        """The number of classes, for texts: "10 classes"."""
        return f"{len(self.names)} classes"

    def section(self, computed: dict[str, Any], predictions: Predictions) -> Section:
        """The task's section of the report, from `metrics.json` and the predictions that it was computed from."""
        return presentation.section(computed, predictions)

    def card_figure(self, computed: dict[str, Any]) -> Drawing:
        """The figure of the model card, from `metrics.json`."""
        return presentation.matrix_drawing(computed, self.names)
