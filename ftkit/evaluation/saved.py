"""Evaluating a saved model, as functions: the steps of recipes/eval.py, in its order."""

from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ftkit.config.arguments.training import TrainingArguments
from ftkit.config.configuration import Evaluation
from ftkit.data.feeding.engine import set_up_loading
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.kinds import log_kinds
from ftkit.data.sources.evaluation import load_evaluation
from ftkit.evaluation.predictions import predict_split, write_evaluation
from ftkit.evaluation.record import describe_command, describe_data, seen_in_training, write_run_record
from ftkit.evaluation.report import write_report
from ftkit.memory import enough_memory
from ftkit.models.classifier import Classifier
from ftkit.places import shown
from ftkit.tasks import Predictions
from ftkit.training.loop.trainer import ImageTrainer
from ftkit.training.provenance import environment
from ftkit.training.stages.memory import check_evaluation

_LESS = "set a smaller batch_size"


def read_images(config: Evaluation, classifier: Classifier, args: TrainingArguments) -> tuple[Images, dict[str, Any]]:
    """The images to evaluate on, as the model takes them, and what `run.json` says about them.

    Raises:
        UserError: the data cannot be evaluated on, or a batch of them takes more memory than is free.
    """
    evaluation, data = config.evaluation, config.data
    split, rows, drawn_from, ledger = load_evaluation(config, classifier.task)
    batch = min(evaluation.batch_size, len(rows))
    check_evaluation(classifier.model, (classifier.channels, *classifier.size), batch, args.device)
    data.image_transform = None  # applies only to training
    with enough_memory("decoding images", "set data_engine: stream", {"data_engine": "stream"}):
        splits = classifier.images_of(DatasetDict({split: rows}), data, seed=0)
    log_kinds(splits)
    set_up_loading(args, splits, workers=None)
    seen = seen_in_training(evaluation.model, splits[split]) if split != "train" else 0
    return splits[split], {
        "command": describe_command(),
        "model": shown(evaluation.model),
        "evaluated_split": split,
        "drawn_from": drawn_from,
        "not_used": ledger.record(splits),
        **({"seen_in_training": seen} if seen else {}),
        **describe_data(data, splits),
    }


def predict(
    config: Evaluation, classifier: Classifier, images: Images, args: TrainingArguments
) -> dict[str, Predictions]:
    """The predictions, plain and by test-time augmentation."""
    trainer = ImageTrainer(classifier.model, args, classifier.normalize, eval_dataset=images)
    with enough_memory("evaluation", _LESS):
        return predict_split(trainer, images, config.data.test_time_augmentation)


def write_results(
    folder: Path, predicted: dict[str, Predictions], images: Images, record: dict[str, Any]
) -> dict[str, Any]:
    """Write predictions, metrics, `run.json` and report into a folder; returns the metrics."""
    metrics = write_evaluation(folder, predicted, images)
    write_run_record(folder, {**record, **environment()}, images.task, metrics)
    write_report(folder)
    return metrics
