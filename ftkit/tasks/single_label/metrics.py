"""The metrics of predictions: all numbers of `metrics.json`. To add one, add a row to `METRICS`."""

from dataclasses import replace
from typing import Any

from ftkit.statistics.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from ftkit.statistics.intervals import macro_f1_interval, mean_interval, wilson
from ftkit.tasks.parts import Interval, Metric
from ftkit.tasks.single_label.predictions import Predictions


def accuracy(predictions: Predictions) -> float:
    """The share of correct predictions."""
    return float(predictions.hits.mean())


def macro_f1(predictions: Predictions) -> float:
    """The mean F1 over the classes that occur, as label or as prediction."""
    from ftkit.statistics import classification  # late: `evaluate` takes seconds to load

    return classification.macro_f1(predictions.matrix)


def calibration_error(predictions: Predictions) -> float:
    """The expected calibration error of the predicted class's probability."""
    return expected_calibration_error(reliability(predictions.confidences, predictions.hits))


def accuracy_interval(predictions: Predictions) -> Interval | None:
    """The 95% interval of `accuracy` (Wilson)."""
    return wilson(predictions.hits.sum(), len(predictions))


# In the order of the report.
METRICS = {
    "accuracy": Metric(
        accuracy,
        "accuracy",
        "share of correct predictions",
        interval=accuracy_interval,
        hub_type="accuracy",
        validation="accuracy",
    ),
    "top_5_accuracy": Metric(
        lambda predictions: float((predictions.ranks < 5).mean()),
        "top-5 accuracy",
        "share of images whose true class is among the five likeliest",
        interval=lambda predictions: wilson((predictions.ranks < 5).sum(), len(predictions)),
        hub_type="accuracy",
        least_classes=20,
    ),
    "macro_f1": Metric(
        macro_f1,
        "macro F1",
        "mean F1 over the classes",
        interval=lambda predictions: macro_f1_interval(predictions.matrix),
        hub_type="f1",
    ),
    "negative_log_likelihood": Metric(
        lambda predictions: float(predictions.losses.mean()),
        "negative log-likelihood",
        "nats per image; lower is better",
        interval=lambda predictions: mean_interval(predictions.losses),
        hub_type="negative_log_likelihood",
        validation="loss",
        higher_is_better=False,
    ),
    "brier_score": Metric(
        lambda predictions: float(predictions.briers.mean()),
        "Brier score",
        "squared distance between probabilities and one-hot label, 0 to 2; lower is better",
        interval=lambda predictions: mean_interval(predictions.briers),
        hub_type="brier_score",
        higher_is_better=False,
    ),
    "expected_calibration_error": Metric(
        calibration_error,
        "expected calibration error",
        "mean gap between confidence and accuracy; lower is better",
        hub_type="expected_calibration_error",
        higher_is_better=False,
    ),
    "majority_baseline": Metric(
        lambda predictions: float(predictions.matrix.sum(1).max() / len(predictions)),
        "majority baseline",
        "accuracy of always predicting the most frequent class",
    ),
}
SCORE = "accuracy"
SUMMARY = ("n", "accuracy", "macro_f1", "test_time_accuracy")
TEST_TIME = {
    "flip": "logits averaged over each image and its mirror image",
    "flip_and_shift": "logits averaged over mirror images and shifts by one pixel",
}


def compute_metrics(
    predictions: Predictions, validation: Predictions | None = None, test_time: dict[str, Predictions] | None = None
) -> dict[str, Any]:
    """All numbers of `metrics.json`.

    Args:
        predictions: the predictions for the reported split.
        validation: the predictions for the split that the temperature is fitted on.
        test_time: predictions for the same images with test-time augmentation, by its name.

    Returns:
        `n`, the metrics of `METRICS`, `intervals` (95%, of those that have one), `test_time_accuracy` by name,
        `calibration` (`reliability` bins, the `temperature` fitted on validation, and its effect), `per_class` by
        name (`n`, `accuracy` = recall, `precision`, `f1`, `intervals`; `class_scores` says when they are None) and
        `confusion_matrix` (rows: true class).
    """
    from ftkit.statistics.classification import class_scores  # late: `evaluate` takes seconds to load

    names = predictions.task.names
    rows = {key: metric for key, metric in METRICS.items() if len(names) >= metric.least_classes}
    metrics: dict[str, Any] = {"n": len(predictions)} | {
        key: metric.compute(predictions) for key, metric in rows.items()
    }
    intervals = {key: metric.interval(predictions) for key, metric in rows.items() if metric.interval}
    metrics["intervals"] = intervals
    if test_time:
        metrics["test_time_accuracy"] = {name: accuracy(of) for name, of in test_time.items()}
        intervals |= {name: accuracy_interval(of) for name, of in test_time.items()}
    return metrics | {
        "calibration": _calibration(predictions, validation),
        "per_class": dict(zip(names, class_scores(predictions.matrix), strict=True)),
        "confusion_matrix": predictions.matrix.tolist(),
    }


def _calibration(predictions: Predictions, validation: Predictions | None) -> dict[str, Any]:
    """The reliability diagram, without and with the temperature fitted on validation."""
    found = {"reliability": reliability(predictions.confidences, predictions.hits)}
    if validation is None:
        return found
    temperature = fit_temperature(validation.logits, validation.labels)
    if temperature is None:
        return found | {"fitted_on": len(validation), "temperature": None}
    tempered = replace(predictions, logits=predictions.logits.astype("float64") / temperature)
    bins = reliability(tempered.confidences, tempered.hits)
    return found | {
        "fitted_on": len(validation),
        "temperature": temperature,
        "tempered_reliability": bins,
        "tempered_expected_calibration_error": expected_calibration_error(bins),
        "tempered_negative_log_likelihood": negative_log_likelihood(tempered.logits, tempered.labels),
    }


def headline(metrics: dict[str, Any]) -> list[tuple[str, float, list[float] | None, str]]:
    """Title, value, interval and explanation of each number at the top of a report."""
    intervals = metrics["intervals"]
    shown = {key: metric for key, metric in METRICS.items() if key in metrics}
    rows = [(metric.title, metrics[key], intervals.get(key), metric.about) for key, metric in shown.items()]
    for name, value in metrics.get("test_time_accuracy", {}).items():
        rows.append(("accuracy with test-time augmentation", value, intervals[name], TEST_TIME[name]))
    return rows
