"""Predictions, stored as columns; losses, probabilities and hits are computed from the logits."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features, List, Value
from scipy.special import log_softmax, softmax

if TYPE_CHECKING:
    from ftkit.tasks.single_label import SingleLabel

_LOGITS = 1 << 24  # the most that are converted to float64 at a time
_OWN = ("index", "hash", "label", "predicted", "label_name", "predicted_name", "logits")  # columns of a stored table


@dataclass
class Predictions:
    """The predictions of an evaluation, one row per image.

    Attributes:
        index: int64 (N,), the row in the split.
        hashes: uint64 (N,), hashes of the image files' bytes.
        labels: int64 (N,), indices into the names of the task.
        logits: float32 (N, C); all numbers are computed from them in float64.
        task: the model's task.
        about: further columns that describe the images, by name, such as `source`.
    """

    index: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    task: "SingleLabel"
    about: dict[str, list] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def losses(self) -> np.ndarray:
        """float64 (N,), the negative log-likelihood of the true class."""
        rows, parts = max(_LOGITS // self.logits.shape[1], 1), []
        for start in range(0, len(self), rows):
            logits, labels = self.logits[start : start + rows], self.labels[start : start + rows]
            parts.append(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels])
        return np.concatenate(parts)

    @cached_property
    def briers(self) -> np.ndarray:
        """float64 (N,), the squared distance of the probabilities from the one-hot label, summed over classes."""
        own = self.probabilities[np.arange(len(self)), self.labels]
        # |p - onehot|² = |p|² - 2 p_label + 1 needs no second matrix of that size
        return np.square(self.probabilities).sum(1) - 2 * own + 1

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 (N, C)."""
        return softmax(self.logits.astype(np.float64), axis=1)

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 (N,), the class with the greatest logit; the first one in a tie."""
        return self.logits.argmax(axis=1)

    @cached_property
    def confidences(self) -> np.ndarray:
        """float64 (N,), the probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @cached_property
    def hits(self) -> np.ndarray:
        """bool (N,), whether the prediction is correct."""
        return self.predicted == self.labels

    @cached_property
    def ranks(self) -> np.ndarray:
        """int64 (N,), how many classes rank before the true one; ties go to the first, as in `predicted`."""
        own = self.logits[np.arange(len(self)), self.labels][:, None]
        earlier = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > own) | ((self.logits == own) & earlier)).sum(axis=1)

    @cached_property
    def matrix(self) -> np.ndarray:
        """int64 (C, C), images by true class (rows) and predicted class (columns)."""
        from ftkit.statistics.classification import confusion_matrix  # late: `evaluate` takes seconds to load

        return confusion_matrix(self.labels, self.predicted, len(self.task.names))

    @cached_property
    def sources(self) -> list[str]:
        """Where each image came from; `image <index>` if the data or an older version of ftkit did not record it."""
        return self.about.get("source") or [f"image {row}" for row in self.index]

    def likeliest(self, position: int, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of an image, likeliest first, with their probabilities; ties as in `ranks`."""
        order = np.argsort(-self.logits[position], kind="stable")[:count]
        return [(self.task.names[c], float(self.probabilities[position, c])) for c in order]

    def by_name(self) -> list[str]:
        """The name of each image's true class, which does not depend on how a model numbers its classes."""
        return [self.task.names[label] for label in self.labels]

    def scores(self) -> np.ndarray:
        """bool (N,), the score of each image; their mean is the score that runs are compared by."""
        return self.hits

    def to_table(self) -> pa.Table:
        """The columns of `_OWN`, as `datasets` reads them, and those of `about`."""
        classes, label, names = len(self.task.names), ClassLabel(names=self.task.names), pa.array(self.task.names)
        features = Features(
            index=Value("int64"),
            hash=Value("uint64"),
            label=label,
            predicted=label,
            label_name=Value("string"),
            predicted_name=Value("string"),
            logits=List(Value("float32"), length=classes),
        )
        logits = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(self.logits).ravel()), classes)
        named = [names.take(pa.array(classes)) for classes in (self.labels, self.predicted)]
        columns = [self.index, self.hashes, self.labels, self.predicted, *named, logits]
        table = pa.table(columns, schema=features.arrow_schema)
        for name, values in self.about.items():
            table = table.append_column(name, pa.array(values))
        return table


def from_table(table: pa.Table, task: "SingleLabel") -> Predictions:
    """The predictions in a table of `to_table`.

    Raises:
        KeyError, ValueError: the table is not one of `to_table`.
    """
    logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, len(task.names))
    index, hashes, labels = (table[name].to_numpy() for name in ("index", "hash", "label"))
    about = {name: table[name].to_pylist() for name in table.column_names if name not in _OWN}
    return Predictions(index, hashes, labels, logits, task, about)
