"""One class an image: targets are class indices int64 (N,), and the softmax of logits float (N, C) probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Features
from torch.nn import functional as F
from transformers import PreTrainedConfig

from ftkit.config import LossArguments
from ftkit.statistics.significance import compare
from ftkit.tasks.columns import column
from ftkit.tasks.parts import Drawing, Metric, Section
from ftkit.tasks.single_label import answers, presentation, targets
from ftkit.tasks.single_label.losses import LOSSES, OPTIONS, class_shares
from ftkit.tasks.single_label.metrics import METRICS, SCORE, SUMMARY, compute_metrics, headline
from ftkit.tasks.single_label.predictions import Predictions, from_table

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SingleLabel:
    """The task of telling which one of `names` an image shows.

    Attributes:
        names: of the classes, in the order of the logits.
        hub_task: the Hub's name of the task.
        losses: by the name that a recipe gives.
        loss_options: the only loss that reads an argument, by the argument's key.
        metrics: by their key in `metrics.json`.
        score: the key of the metric that chooses the checkpoint by default, and by which runs are compared: a mean
            over images; greater is better.
        summary: what of `metrics.json` a run's record repeats.
        logits_meaning: for those who use an exported model, which comes with `class_names`.
        validation_loss: what the loss on validation is, whatever is minimised.
        data_template: what a report says about the targets of each split.
    """

    names: list[str]
    hub_task: ClassVar[str] = "image-classification"
    losses: ClassVar[dict[str, Callable[..., torch.Tensor]]] = LOSSES
    loss_options: ClassVar[dict[str, str]] = OPTIONS
    metrics: ClassVar[dict[str, Metric]] = METRICS
    score: ClassVar[str] = SCORE
    summary: ClassVar[tuple[str, ...]] = SUMMARY
    logits_meaning: ClassVar[str] = (
        "The index of the largest logit is that of the class in class_names; the softmax of the logits gives "
        "probabilities."
    )
    validation_loss: ClassVar[str] = "the cross-entropy"
    data_template: ClassVar[str] = "single_label_data"

    # Targets: the column `label` of a dataset

    target_column = staticmethod(targets.label_column)
    check_targets = staticmethod(targets.check_classes)
    keep_classes = staticmethod(targets.keep_classes)
    some_of_each = staticmethod(targets.some_of_each)
    carve = staticmethod(targets.carve)

    @classmethod
    def read(cls, splits: dict[str, Dataset], column: str) -> "SingleLabel":
        """The task that the target column of these splits sets; see `targets.class_names`."""
        return cls(targets.class_names(splits, column))

    @classmethod
    def of_features(cls, features: Features) -> "SingleLabel | None":
        """The task of data with these columns, or None where they are another task's."""
        return cls(features["label"].names) if isinstance(features.get("label"), ClassLabel) else None

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "SingleLabel | None":
        """The task of a model with this config, or None where it is another task's."""
        names: dict[Any, str] = dict(config.id2label or {})
        return cls([names[i] for i in range(len(names))])

    def config_options(self) -> dict[str, Any]:
        """What a model's config says of the task."""
        numbers = {name: i for i, name in enumerate(self.names)}
        return {"num_labels": len(self.names), "id2label": dict(enumerate(self.names)), "label2id": numbers}

    def encode(self, dataset: Dataset, split: str) -> Dataset:
        """`dataset` with its targets as this task's; see `targets.as_classes`."""
        return targets.as_classes(dataset, self.names, split)

    def relabel(self, dataset: Dataset, what: str) -> Dataset:
        """`dataset` with labels numbered as this task's, by class name; see `targets.relabel`."""
        return targets.relabel(dataset, self.names, what)

    def tensor(self, dataset: Dataset) -> torch.Tensor:
        """The targets of a dataset as they are trained on: int64 (N,)."""
        return torch.tensor(column(dataset, "label"))

    def counts(self, labels: torch.Tensor) -> dict[str, int]:
        """How many images each class has, by name."""
        return dict(zip(self.names, torch.bincount(labels, minlength=len(self.names)).tolist(), strict=True))

    def compact(self, labels: torch.Tensor) -> np.ndarray:
        """The targets as a run keeps them, to tell a resume which images have another one: int32 (N,)."""
        return labels.cpu().numpy().astype(np.int32)

    # Training

    def loss(self, args: LossArguments, label_smoothing: float) -> Loss:
        """The loss of a run: (logits float (N, C), targets int64 (N,) or float (N, C)) -> the mean, float ().

        Args:
            label_smoothing: the share of each target that is spread over all classes, whatever the loss.
        """
        compute = LOSSES[args.loss]
        return lambda logits, labels: compute(logits.float(), labels, label_smoothing, args)

    def mixable(self, labels: torch.Tensor) -> torch.Tensor:
        """Targets that mixup and cutmix can average: shares of classes, float (N, C)."""
        return class_shares(labels, len(self.names))

    def evaluation_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch on validation, the mean, float ()."""
        return F.cross_entropy(logits, labels)

    def validate(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """What is logged on validation and may choose the checkpoint, of logits (N, C) and labels (N,).

        These are means over images: the `Trainer`'s own loss averages batches, wrongly where the last one is short.
        """
        rows = np.arange(len(labels))
        found = Predictions(rows, np.zeros(len(rows), np.uint64), labels, np.asarray(logits), self)
        return {metric.validation: metric.compute(found) for metric in self.metrics.values() if metric.validation}

    @classmethod
    def validation(cls) -> dict[str, bool]:
        """The names of what `validate` gives, the loss first, and whether greater is better."""
        rows = sorted(cls.metrics.values(), key=lambda metric: metric.validation != "loss")
        return {metric.validation: metric.higher_is_better for metric in rows if metric.validation}

    # Answers

    decide = staticmethod(answers.decide)
    agreement = staticmethod(answers.agreement)
    probabilities = staticmethod(answers.probabilities)

    def likeliest(self, logits: torch.Tensor, count: int) -> list[list[tuple[str, float]]]:
        """For each image its `count` likeliest classes, of equals the first, with their probabilities."""
        found = zip(*answers.likeliest(logits, count), strict=True)
        return [[(self.names[c], p) for c, p in zip(*row, strict=True)] for row in found]

    # Evaluation

    def predictions(
        self, index: np.ndarray, hashes: np.ndarray, labels: np.ndarray, logits: np.ndarray
    ) -> Predictions:
        """What is stored of an evaluation; see `Predictions`."""
        return Predictions(index, hashes, labels, logits.astype(np.float32), self)

    def from_table(self, table: pa.Table) -> Predictions:
        """The predictions that were stored as `table`; see `Predictions.to_table`."""
        return from_table(table, self)

    compute_metrics = staticmethod(compute_metrics)
    headline = staticmethod(headline)
    gallery = staticmethod(presentation.gallery)
    caption = staticmethod(presentation.caption)
    compare = staticmethod(compare)

    @property
    def score_metric(self) -> Metric:
        """The row of the metric `score`."""
        return self.metrics[self.score]

    @property
    def size(self) -> str:
        """How many classes, in words."""
        return f"{len(self.names)} classes"

    def section(self, computed: dict[str, Any]) -> Section:
        """The task's part of the report, from its metrics."""
        return presentation.section(computed, self.names)

    def card_figure(self, computed: dict[str, Any]) -> Drawing:
        """The figure of the model's card, from its metrics."""
        return presentation.matrix_drawing(computed, self.names)
