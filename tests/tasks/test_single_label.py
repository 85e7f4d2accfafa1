"""The task of one class per image: targets, logits, and that a new loss or metric is one row."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from support import REPO, random_predictions, store
from torch.nn import functional as F

from ftkit import tasks
from ftkit.config import DataArguments, LossArguments
from ftkit.evaluation.predictions import read_predictions, write_predictions
from ftkit.evaluation.report import write_report
from ftkit.tasks import TASKS, Metric, SingleLabel, task_of
from ftkit.tasks.single_label.losses import LOSSES
from ftkit.tasks.single_label.metrics import METRICS

NAMES = ["cat", "dog", "owl"]
TASK = SingleLabel(NAMES)


def rows(labels, names=NAMES):
    features = Features(label=ClassLabel(names=names), index=Value("int64"))
    return Dataset.from_dict({"label": labels, "index": range(len(labels))}, features=features)


def test_the_columns_determine_the_task():
    assert task_of(rows([0, 1]).features) == TASK
    with pytest.raises(ValueError, match="no task has the columns text"):
        task_of(Features(text=Value("string")))


def test_stored_predictions_have_fixed_columns_and_are_read_back(tmp_path):
    stored = replace(random_predictions(NAMES, 50), about={"source": [f"a/{i}.png" for i in range(50)]})
    write_predictions(tmp_path, stored)
    features = Features.from_arrow_schema(stored.to_table().schema)
    assert {name: str(feature) for name, feature in features.items()} == {
        "index": "Value('int64')",
        "hash": "Value('uint64')",
        "label": "ClassLabel(names=['cat', 'dog', 'owl'])",
        "predicted": "ClassLabel(names=['cat', 'dog', 'owl'])",
        "label_name": "Value('string')",
        "predicted_name": "Value('string')",
        "logits": "List(Value('float32'), length=3)",
        "source": "Value('string')",
    }
    again = read_predictions(tmp_path)
    assert again.task == TASK and again.logits.dtype == np.float32
    for name in ("index", "hashes", "labels", "logits", "predicted", "sources", "about"):
        assert np.array_equal(getattr(again, name), getattr(stored, name))
    plain = pd.read_parquet(tmp_path / "predictions.parquet")  # by other tools
    assert plain["label_name"].tolist() == stored.by_name() and plain["source"][7] == "a/7.png"


def test_predictions_of_an_older_version_have_numbers_for_names(tmp_path):
    stored = random_predictions(NAMES, 5)
    pq.write_table(stored.to_table().drop_columns(["label_name", "predicted_name"]), tmp_path / "predictions.parquet")
    assert read_predictions(tmp_path).sources == [f"image {i}" for i in range(5)]


def test_validation_and_report_compute_the_same_numbers():
    found = random_predictions(NAMES, 500)
    logged, reported = TASK.validate(found.logits, found.labels), TASK.compute_metrics(found)
    validated = {key: metric for key, metric in METRICS.items() if metric.validation}
    assert {"accuracy", "negative_log_likelihood"} <= validated.keys()
    expected = {metric.validation: reported[key] for key, metric in validated.items()}
    assert logged == pytest.approx(expected, rel=1e-12)
    assert TASK.validation() == {metric.validation: metric.higher_is_better for metric in validated.values()}
    assert next(iter(TASK.validation())) == "loss"
    expected = F.cross_entropy(torch.from_numpy(found.logits).double(), torch.from_numpy(found.labels)).item()
    assert logged["loss"] == pytest.approx(expected, rel=1e-12)


def test_losses_do_not_depend_on_the_chunks_they_are_computed_in(monkeypatch):
    whole = random_predictions(NAMES, 500).losses
    monkeypatch.setattr("ftkit.tasks.single_label.predictions._LOGITS", 7 * len(NAMES))
    np.testing.assert_allclose(random_predictions(NAMES, 500).losses, whole, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_ties_go_to_the_first_class_everywhere(count):
    logits = torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    answers = TASK.likeliest(logits, count)
    assert [[name for name, _ in answer] for answer in answers] == [
        ["dog", "owl", "cat"][:count],
        ["cat", "dog", "owl"][:count],
    ]
    assert answers[1][0][1] == pytest.approx(1 / 3)
    stored = TASK.predictions(np.arange(2), np.arange(2, dtype=np.uint64), np.array([1, 0]), logits.numpy())
    assert stored.predicted.tolist() == TASK.decide(logits).tolist() == [1, 0]
    assert TASK.agreement(TASK.decide(logits), torch.tensor([1, 2])) == 0.5


def test_targets_are_mixed_as_shares_of_classes():
    labels = TASK.tensor(rows([0, 2, 2]))
    assert labels.dtype == torch.int64 and TASK.counts(labels) == {"cat": 1, "dog": 0, "owl": 2}
    assert torch.equal(TASK.mixable(labels), F.one_hot(labels, 3).float())
    shares = torch.tensor([[0.5, 0.5, 0.0]])
    assert TASK.mixable(shares) is shares


def test_labels_of_other_data_are_matched_by_name(refused):
    other = rows([0, 1, 1], ["owl", "cat"])
    assert TASK.as_known(other, DataArguments(), what="test")["label"] == [2, 0, 0]
    with refused("test has classes that the model does not know: 'fox' (1 images); it knows 'cat', 'dog', 'owl'"):
        TASK.as_known(rows([1], ["cat", "fox"]), DataArguments(), what="test")


def test_the_list_of_a_tasks_members_is_complete():
    listed = re.findall(r"`(\w+)`", tasks.__doc__.partition("documents.")[2])
    assert sorted(listed) == sorted(name for name in dir(TASK) if not name.startswith("_"))


def test_no_other_module_names_a_task():
    names = {task.__name__ for task in TASKS}
    modules = [path for path in (REPO / "ftkit").rglob("*.py") if "tasks" not in path.parts]
    assert modules and not [path for path in modules if any(name in path.read_text("utf-8") for name in names)]


def test_a_new_loss_is_a_row(monkeypatch):
    monkeypatch.setitem(LOSSES, "margin", lambda logits, targets, smoothing, args: logits.mean() + smoothing)
    loss = SingleLabel(NAMES).loss(LossArguments("margin"), 0.25)
    assert loss(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)).item() == 1.25


def test_a_new_metric_is_a_row(tmp_path, monkeypatch):
    """It is computed, reported, and may choose the checkpoint."""
    row = Metric(lambda found: float(found.confidences.mean()), "mean confidence", "how sure it is",
                 hub_type="confidence", validation="confidence")  # fmt: skip
    monkeypatch.setitem(METRICS, "mean_confidence", row)
    folder = store(tmp_path / "evaluation", random_predictions(NAMES, 60))
    found = read_predictions(folder)
    assert TASK.compute_metrics(found)["mean_confidence"] == found.confidences.mean()
    assert "mean confidence" in write_report(folder).read_text()
    assert TASK.validate(found.logits, found.labels)["confidence"] == found.confidences.mean()


def test_the_task_loads_without_what_only_a_report_needs():
    """`evaluate` and matplotlib take seconds; errors in the configuration come before that."""
    code = "import sys, ftkit.tasks; print({'evaluate', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
