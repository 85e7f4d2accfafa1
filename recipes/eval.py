"""Evaluate a saved model: accuracy, macro F1 and, with `--output_dir`, the full report.

    accelerate launch recipes/eval.py --model runs/digits-convnet-scratch
    accelerate launch recipes/eval.py --model path/to/model --data_dir path/to/images --split validation

The data are those of the run that the model belongs to, split as in the run, unless `--dataset` or `--data_dir` names
others: these are read whole if they have no splits, and of any number of classes. Labels are matched by class name,
never by number.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from ftkit.errors import user_errors
from ftkit.owners import parse_evaluation


def main(arguments: list[str]) -> None:
    """Evaluate; `arguments` is the command line without the program's name."""
    config = parse_evaluation(arguments)
    data, evaluation = config.data, config.evaluation

    from datasets import DatasetDict

    from ftkit.config.arguments.training import TrainingArguments
    from ftkit.console import banner, fact, say_idle_gpus, set_up_console
    from ftkit.data.feeding.engine import set_up_loading
    from ftkit.data.pixels.kinds import say_kinds
    from ftkit.data.sources.evaluation import load_evaluation
    from ftkit.evaluation.predictions import predict_split, write_evaluation
    from ftkit.evaluation.record import (
        describe_command,
        describe_data,
        evaluated_images,
        seen_in_training,
        show_result,
        write_run_record,
    )
    from ftkit.evaluation.report import write_report
    from ftkit.models.classifier import Classifier
    from ftkit.places import shown
    from ftkit.training.loop.trainer import ImageTrainer
    from ftkit.training.provenance import environment

    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(scratch, per_device_eval_batch_size=evaluation.batch_size, eval_strategy="no")
        set_up_console(args)
        say_idle_gpus(args)

        banner("model")
        classifier = Classifier.load(evaluation.model, evaluation.revision, evaluation.trust_remote_code)
        model, task = classifier.model, classifier.task
        fact("model", f"{evaluation.model}, {model.num_parameters():,} parameters, {task.size}")

        banner("data")
        split, rows, drawn_from, ledger = load_evaluation(config, task)
        record: dict[str, Any] = {"command": describe_command(), "model": shown(evaluation.model)}
        record |= {"evaluated_split": split, "drawn_from": drawn_from}
        data.image_transform = None  # applies only to training
        splits = classifier.images_of(DatasetDict({split: rows}), data, seed=0)
        say_kinds(splits)
        set_up_loading(args, splits, workers=None)
        images = splits[split]
        record["not_used"] = ledger.record(splits)
        fact("source", data.data_dir or data.dataset)
        fact("images", evaluated_images(record, len(images)))
        if (seen := seen_in_training(evaluation.model, images)) and split != "train":
            record["seen_in_training"] = seen
            fact("", f"{seen:,} of them are among the images that the model was trained on")

        trainer = ImageTrainer(model, args, classifier.normalize, eval_dataset=images)
        predicted = predict_split(trainer, images, data.test_time_augmentation)
    if args.process_index != 0:
        return

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(evaluation.output_dir or scratch)
        metrics = write_evaluation(folder, predicted, images)
        write_run_record(folder, {**record, **describe_data(data, splits), **environment()}, task, metrics)
        write_report(folder)
    banner("done")
    others = [key for key in task.metrics if key in task.summary and key != task.score]
    show_result(task, metrics, ", ".join(["images", *(f"{task.metrics[k].title} {metrics[k]:.4f}" for k in others)]))
    fact(
        "report", (evaluation.output_dir and folder / "report.html") or "not written: name a folder with --output_dir"
    )


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
