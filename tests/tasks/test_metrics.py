"""Every number of a report equals what scikit-learn computes from the stored predictions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk
from support import random_predictions

from ftkit.evaluation.predictions import read_predictions
from ftkit.statistics.calibration import fit_temperature
from ftkit.statistics.intervals import f1_interval, macro_f1_interval, mean_interval, wilson
from ftkit.tasks import SingleLabel
from ftkit.tasks.single_label.metrics import METRICS, compute_metrics

EXACT = {"abs": 1e-9}


def assert_recomputed(metrics: dict, labels: np.ndarray, logits: np.ndarray, names: list[str]) -> None:
    classes, predicted = np.arange(len(names)), logits.argmax(1)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert metrics["n"] == len(labels)
    confidences, hits = probabilities.max(1), predicted == labels
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "negative_log_likelihood": sk.log_loss(labels, probabilities, labels=classes),
        "brier_score": sk.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False),
        "expected_calibration_error": calibration_error(confidences, hits),
        "majority_baseline": np.bincount(labels).max() / len(labels),
    }
    if len(names) >= 20:
        expected["top_5_accuracy"] = sk.top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    found = {key: value for key, value in metrics.items() if key in METRICS}
    assert found == pytest.approx(expected, **EXACT)  # a new metric needs a reference above
    assert metrics["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=classes).tolist()
    scores = sk.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    rows = list(metrics["per_class"].values())
    for values, key in zip(scores, ("precision", "accuracy", "f1", "n"), strict=True):
        assert [row[key] for row in rows] == pytest.approx(list(values), **EXACT)
    assert sum(b["n"] for b in metrics["calibration"]["reliability"]) == len(labels)
    if metrics["calibration"].get("temperature"):
        tempered = softmax(logits.astype(np.float64) / metrics["calibration"]["temperature"], axis=1)
        assert metrics["calibration"]["tempered_negative_log_likelihood"] == pytest.approx(
            sk.log_loss(labels, tempered, labels=classes), **EXACT
        )
        error = calibration_error(tempered.max(1), hits)
        assert metrics["calibration"]["tempered_expected_calibration_error"] == pytest.approx(error, **EXACT)


def calibration_error(confidences: np.ndarray, hits: np.ndarray) -> float:
    """By its definition, bin by bin."""
    total = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            total += inside.sum() * abs(confidences[inside].mean() - hits[inside].mean())
    return total / len(hits)


def test_the_metrics_of_a_run(digits_run):
    stored = read_predictions(digits_run / "evaluation")
    metrics = json.loads((digits_run / "evaluation" / "metrics.json").read_text())
    assert_recomputed(metrics, stored.labels, stored.logits, stored.task.names)
    assert metrics["calibration"]["fitted_on"] == 144
    accuracy = json.loads((digits_run / "run.json").read_text())["test"]["accuracy"]
    assert accuracy == metrics["accuracy"]


@pytest.mark.parametrize("classes", [2, 3, 25])
def test_metrics_of_random_predictions(classes):
    names = [f"class {i}" for i in range(classes)]
    test, validation = random_predictions(names, 3000), random_predictions(names, 1000, seed=1)
    assert_recomputed(compute_metrics(test, validation), test.labels, test.logits, names)


def test_a_class_that_does_not_occur_has_no_scores():
    predictions = random_predictions(["a", "b"], 50)
    wider = np.pad(predictions.logits, ((0, 0), (0, 1)), constant_values=-50.0)
    metrics = compute_metrics(replace(predictions, logits=wider, task=SingleLabel(["a", "b", "never"])))
    never = metrics["per_class"]["never"]
    assert never.pop("intervals") == {"accuracy": None, "precision": None, "f1": None}
    assert never == {"n": 0, "accuracy": None, "precision": None, "f1": None}
    assert metrics["macro_f1"] == compute_metrics(predictions)["macro_f1"]


def test_a_class_without_images_has_no_recall():
    """If it was predicted, it has a precision, and the mean F1 counts the mistakes."""
    predictions = random_predictions(["a", "b"], 50)
    wider = np.pad(predictions.logits, ((0, 0), (0, 1)), constant_values=-50.0)
    wider[:5, 2] = 50.0
    metrics = compute_metrics(replace(predictions, logits=wider, task=SingleLabel(["a", "b", "only predicted"])))
    mistaken = metrics["per_class"]["only predicted"]
    assert mistaken["n"] == 0 and mistaken["accuracy"] is None and mistaken["intervals"]["accuracy"] is None
    assert mistaken["precision"] == mistaken["f1"] == 0 and mistaken["intervals"]["precision"] is not None
    f1 = sk.f1_score(predictions.labels, wider.argmax(1), average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(f1, **EXACT)


def test_ties_are_broken_as_argmax_breaks_them():
    """Of equal logits, the one with the lower index ranks first."""
    rng, names = np.random.default_rng(7), [f"class {i}" for i in range(30)]
    predictions = random_predictions(names, 400)
    for logits in (np.zeros((400, 30)), rng.integers(0, 4, (400, 30))):
        tied = replace(predictions, logits=logits.astype(np.float32))
        order = np.argsort(-tied.logits, axis=1, kind="stable")
        assert np.array_equal(order[:, 0], tied.predicted)
        hits = (order[:, :5] == tied.labels[:, None]).any(1)
        assert compute_metrics(tied)["top_5_accuracy"] == pytest.approx(hits.mean(), **EXACT)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_stored_numbers_follow_from_stored_logits_and_temperature(scale):
    """Calibration errors, too, at confidences on the edges of bins."""
    names = ["a", "b", "c"]
    test, validation = random_predictions(names, 3000), random_predictions(names, 1000, seed=1)
    test, validation = (replace(some, logits=some.logits * np.float32(scale)) for some in (test, validation))
    test.logits[:300] = np.float32(0.1)  # confidences on the edge of two bins
    assert_recomputed(compute_metrics(test, validation), test.labels, test.logits, names)


def test_the_temperature_undoes_a_scaling_of_calibrated_logits():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits, axis=1)])
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.03)
    assert fit_temperature(logits / 2, labels) == pytest.approx(0.5, rel=0.03)
    assert fit_temperature(np.eye(4)[labels] * 5, labels) is None  # all correct: the colder, the better


def test_intervals_cover_the_true_value_in_95_percent_of_samples():
    """Within 3 standard errors."""
    rng, n, repeats = np.random.default_rng(5), 300, 400
    held = {"proportion": 0, "mean": 0, "f1": 0, "macro": 0}
    cells = np.array([[0.4, 0.05], [0.1, 0.45]])  # joint distribution of label and prediction
    f1 = 2 * np.diag(cells) / (cells.sum(0) + cells.sum(1))
    for _ in range(repeats):
        matrix = rng.multinomial(n, cells.ravel()).reshape(2, 2)
        values = rng.exponential(size=n)
        bounds = {
            "proportion": (wilson(np.trace(matrix), n), 0.85),
            "mean": (mean_interval(values), 1.0),
            "f1": (f1_interval(matrix[0, 0], matrix[0, 1] + matrix[1, 0]), f1[0]),
            "macro": (macro_f1_interval(matrix), f1.mean()),
        }
        for name, ((low, high), truth) in bounds.items():
            held[name] += low <= truth <= high
    assert all(abs(count / repeats - 0.95) < 3 * np.sqrt(0.95 * 0.05 / repeats) for count in held.values()), held
