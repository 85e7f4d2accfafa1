"""Evaluate a saved model: accuracy, macro F1 and, with `--output_dir`, the full report.

    accelerate launch recipes/eval.py --model runs/digits-convnet-scratch
    accelerate launch recipes/eval.py --model path/to/model --data_dir path/to/images --split validation

The data are those of the run that the model belongs to, unless `--dataset` or `--data_dir` names others. Labels are
matched by class name, never by number.
"""

import sys
import tempfile
from pathlib import Path

from ftkit.errors import user_errors
from ftkit.owners import parse_evaluation


def main(arguments: list[str]) -> None:
    """Evaluate; `arguments` is the command line without the program's name."""
    data, evaluation = parse_evaluation(arguments)

    from datasets import DatasetDict

    from ftkit.config.arguments.training import TrainingArguments
    from ftkit.console import banner, fact, say_idle_gpus, set_up_console
    from ftkit.data.feeding.engine import load_images, set_up_loading
    from ftkit.data.pixels.images import describe_images
    from ftkit.data.sources.load import load_data
    from ftkit.evaluation.predictions import predict_split, write_evaluation
    from ftkit.evaluation.record import describe_command, describe_data, show_result, write_run_record
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
        rows = task.relabel(load_data(data)[evaluation.split], what=f"split {evaluation.split}")
        split = DatasetDict({evaluation.split: rows})
        data.image_transform = None  # applies only to training
        channels = classifier.channels_of(describe_images(rows))
        splits = load_images(split, classifier.processor, channels, data, seed=0)
        set_up_loading(args, splits, workers=None)
        images = splits[evaluation.split]
        fact("images", f"{len(images):,} of {evaluation.split} of {data.data_dir or data.dataset}")

        trainer = ImageTrainer(model, args, classifier.normalize, eval_dataset=images)
        predicted = predict_split(trainer, images, data.test_time_augmentation)
    if args.process_index != 0:
        return

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(evaluation.output_dir or scratch)
        metrics = write_evaluation(folder, predicted, images)
        record = {"command": describe_command(), "model": shown(evaluation.model), "evaluated_split": evaluation.split}
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
