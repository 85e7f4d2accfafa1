"""Evaluate a saved model: accuracy, macro F1 and, with `--output_dir`, the full report.

    accelerate launch recipes/eval.py --model runs/digits-convnet-scratch
    accelerate launch recipes/eval.py --model path/to/model --data_dir path/to/images --split validation

Without `--dataset` or `--data_dir`, it evaluates on the data and splits of the model's run. Other data without splits
are read whole, and may have any number of classes. Labels are matched by class name, never by number.
"""

import sys
import tempfile
from pathlib import Path

from ftkit.errors import user_errors
from ftkit.owners import parse_evaluation

_NO_REPORT = "not written: name a folder with --output_dir"


def main(arguments: list[str]) -> None:
    """Evaluate; `arguments` is the command line without the program's name."""
    config = parse_evaluation(arguments)
    data, evaluation = config.data, config.evaluation

    # These take seconds to load: a mistake in the configuration is reported first.
    from ftkit.config.arguments.training import TrainingArguments
    from ftkit.console import banner, fact, set_up_console, warn_of_idle_gpus
    from ftkit.evaluation import saved
    from ftkit.evaluation.record import evaluated_images, show_evaluation
    from ftkit.models.classifier import Classifier

    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(scratch, per_device_eval_batch_size=evaluation.batch_size, eval_strategy="no")
        set_up_console(args)
        warn_of_idle_gpus(args)

        banner("model")
        classifier = Classifier.load(evaluation.model, evaluation.revision, evaluation.trust_remote_code)
        parameters = f"{classifier.model.num_parameters():,} parameters"
        fact("model", f"{evaluation.model}, {parameters}, {classifier.task.size}")

        banner("data")
        images, record = saved.read_images(config, classifier, args)
        fact("source", data.data_dir or data.dataset)
        fact("images", evaluated_images(record, len(images)))
        if "seen_in_training" in record:
            fact("", f"{record['seen_in_training']:,} of them are among the images that the model was trained on")

        banner("evaluate")
        predicted = saved.predict(config, classifier, images, args)
        if args.process_index == 0:
            folder = Path(evaluation.output_dir or scratch)
            metrics = saved.write_results(folder, predicted, images, record)
            banner("done")
            show_evaluation(classifier.task, metrics)
            fact("report", folder / "report.html" if evaluation.output_dir else _NO_REPORT)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
