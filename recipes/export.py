"""Export a trained model to files that run without ftkit, checked against PyTorch on images of the run's data.

    python recipes/export.py --model runs/digits-convnet-scratch --format onnx
    python recipes/export.py --model path/to/model --data_dir path/to/images --format all --output_dir path/to/exported

`onnx` is ONNX, `torch_export` a .pt2 file of torch.export, `int8` ONNX quantised to 8 bits and calibrated on training
images. Without `--dataset` or `--data_dir`, the images come from the model's run. All options of recipes/eval.py work
too (`--split`, `--batch_size`, `--revision`, …).
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from ftkit.config import DataArguments, EvaluationArguments
from ftkit.config.scripts import ScriptParser, whole_number
from ftkit.errors import UserError, nearest, user_errors
from ftkit.export import FORMATS
from ftkit.export.checks import check_folder, check_packages, default_folder
from ftkit.owners import parse_evaluation

REPORTED_LOSS = 0.01  # the smallest drop of int8's score that is reported


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; options of an evaluation are left for `parse_evaluation`.

    Raises:
        UserError: an option is unknown, or its value is invalid.
    """
    parser = ScriptParser(prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", action="extend", default=[], help=f"{', '.join(FORMATS)}, or all")
    parser.add_argument("--output_dir", type=Path, help="a new folder (default: export/ in the run's folder)")
    parser.add_argument("--overwrite", choices=("true", "false"), default="false", help="replace an earlier export")
    parser.add_argument("--max_images", type=whole_number, help="measure accuracy on this many images (default: all)")
    parser.add_argument("--repeats", type=whole_number, default=100, help="times that a batch is timed (default: 100)")
    args, evaluation = parser.parse_known_args(arguments)
    args.evaluation = evaluation
    known = {field.name for group in (DataArguments, EvaluationArguments) for field in dataclasses.fields(group)}
    known |= vars(args).keys() - {"evaluation"}
    for word in args.evaluation:
        key = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and key not in known:
            raise UserError(f"--{key}: there is no such option{nearest(key, sorted(known))}: see --help")
    valid = [*FORMATS, "all"]
    for name in args.format:
        if name not in valid:
            raise UserError(f"--format: {name!r} is not one of {', '.join(valid)}{nearest(name, valid)}")
    if not args.format:
        raise UserError(f"--format is missing: give {', '.join(FORMATS)}, several of them, or all")
    args.format = [name for name in FORMATS if {name, "all"} & set(args.format)]
    args.overwrite = args.overwrite == "true"
    return args


def main(arguments: list[str]) -> None:
    """Export; `arguments` is the command line without the program's name."""
    args = parse_arguments(arguments)
    config = parse_evaluation(args.evaluation)
    data, evaluation = config.data, config.evaluation
    folder = args.output_dir or default_folder(evaluation.model)
    check_folder(folder, args.overwrite)
    check_packages(args.format)

    from ftkit.config.arguments.training import TrainingArguments
    from ftkit.console import banner, fact, set_up_console
    from ftkit.export.exporting import PYTORCH, Export, as_table, read_images, written_aside
    from ftkit.models.classifier import Classifier

    with tempfile.TemporaryDirectory() as scratch:
        set_up_console(TrainingArguments(scratch))

    banner("model")
    classifier = Classifier.load(evaluation.model, evaluation.revision, evaluation.trust_remote_code)
    task, score = classifier.task, classifier.task.score_metric.title
    fact("model", f"{evaluation.model}, {classifier.model.num_parameters():,} parameters, {task.size}")

    banner("data")
    split, images = read_images(config, classifier, args.format, args.max_images)
    fact("images", f"{len(images['measured']):,} of {data.data_dir or data.dataset} ({split})")

    banner("export")
    export = Export(classifier, images, evaluation.batch_size)
    with written_aside(folder) as aside:
        for name in args.format:
            exact = f"logits within {export.write(name, aside):.1e} of PyTorch's"
            fact(name, f"calibrated on {len(images['calibration'])} images" if name == "int8" else exact)
        banner("measure")
        for name in (PYTORCH, *args.format):
            fact(name, f"{score} {export.measure(name, args.repeats)[task.score]:.4f}")
        record = export.save(aside, config, split, args.repeats)

    banner("done")
    print(as_table(record, task))
    fact("folder", folder)
    scores = {name: row[task.score] for name, row in export.rows.items()}
    if (lost := scores[PYTORCH] - scores.get("int8", scores[PYTORCH])) > REPORTED_LOSS:
        fact("", f"int8 loses {100 * lost:.1f} points of {score}, which onnx keeps")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
