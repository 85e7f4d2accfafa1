"""Export a trained model to a file that runs without ftkit, checked against PyTorch on images of the run's data.

    python recipes/export.py --model runs/digits-convnet-scratch --format onnx
    python recipes/export.py --model path/to/model --data_dir path/to/images --format all --output_dir path/to/exported

`onnx` is ONNX, `torch_export` a .pt2 file of torch.export, `int8` ONNX quantised to 8 bits, its ranges measured on
training images. The data are those of the run that the model lies in, unless `--dataset` or `--data_dir` names others;
these and all further options of recipes/eval.py are taken too (`--split`, `--batch_size`, `--revision`, …).
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config import DataArguments, EvaluationArguments
from ftkit.config.scripts import ScriptParser, whole_number
from ftkit.errors import UserError, nearest, user_errors
from ftkit.export import FORMATS
from ftkit.owners import parse_evaluation

if TYPE_CHECKING:
    from datasets import Dataset

    from ftkit.data.feeding.tensors import Images
    from ftkit.models.classifier import Classifier

CALIBRATION_IMAGES = 256  # of train; their extremes are the ranges, which more of them widen
TOLERANCES = {"onnx": 1e-4, "torch_export": 1e-4, "int8": float("inf")}  # int8 is judged by its accuracy
LOSS_TO_TELL = 0.01  # of accuracy, by int8
RECORD = "export.json"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; the words that belong to an evaluation are kept for `parse_evaluation`.

    Raises:
        UserError: an option is unknown, or has no value that it can take.
    """
    parser = ScriptParser(prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", action="extend", default=[], help=f"{', '.join(FORMATS)}, or all")
    parser.add_argument("--output_dir", type=Path, help="a new folder (default: export/ in the run's folder)")
    parser.add_argument("--overwrite", choices=("true", "false"), default="false", help="replace an earlier export")
    parser.add_argument("--max_images", type=whole_number, help="measure accuracy on as many images (default: on all)")
    parser.add_argument("--repeats", type=whole_number, default=100, help="how often a batch is timed (default: 100)")
    args, args.evaluation = parser.parse_known_args(arguments)
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


def needed_packages(formats: list[str]) -> tuple[str, ...]:
    """What of the extra `export` the formats need; torch.export needs nothing."""
    return ("onnx", "onnxruntime", "onnxscript") if {"onnx", "int8"} & set(formats) else ()


def check_packages(formats: list[str]) -> None:
    """That what the formats need is installed."""
    if missing := [name for name in needed_packages(formats) if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format {' '.join(formats)} needs {', '.join(missing)}: pip install -e '.[export]'")


def default_folder(model: str) -> Path:
    """`export/` of the run that `model` lies in, or of the model's own folder; for the Hub's, one in `runs/`."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return Path("runs") / f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', model)}-export"
    return (path.parent if (path.parent / "config.yaml").is_file() else path) / "export"


def check_folder(folder: Path, overwrite: bool) -> None:
    """That `folder` is free, or holds an export that is to be replaced."""
    if folder.exists() and not (folder / RECORD).is_file():
        raise UserError(f"output_dir: {folder} exists and holds no export: give the name of a new folder")
    if folder.exists() and not overwrite:
        raise UserError(
            f"output_dir: {folder} holds an export: give another --output_dir, or --overwrite true to replace it"
        )


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` if all goes well, and is gone otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error}") from error
    with scratch as place:
        aside = Path(place) / "new"
        aside.mkdir()
        yield aside
        if folder.exists():
            os.replace(folder, Path(place) / "old")
        os.replace(aside, folder)


def take_some(dataset: "Dataset", count: int | None) -> "Dataset":
    """`count` rows, drawn at random and the same every time; all where it is None."""
    import numpy as np

    if count is None or count >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(0).permutation(len(dataset))[:count]))


def main(arguments: list[str]) -> None:
    """Export as `arguments`, a command line without the program's name, say."""
    export = parse_arguments(arguments)
    data, evaluation = parse_evaluation(export.evaluation)
    folder = export.output_dir or default_folder(evaluation.model)
    check_folder(folder, export.overwrite)
    check_packages(export.format)

    import torch

    from ftkit.config.training import TrainingArguments
    from ftkit.console import banner, fact, set_up_console
    from ftkit.export.formats import capture, load, plain_model, write
    from ftkit.export.measuring import Reference, megabytes, take
    from ftkit.export.preprocessing import write_preprocessing
    from ftkit.models.classifier import Classifier

    with tempfile.TemporaryDirectory() as scratch:
        set_up_console(TrainingArguments(scratch))

    banner("model")
    classifier = Classifier.load(evaluation.model, evaluation.revision, evaluation.trust_remote_code)
    fact("model", f"{evaluation.model}, {classifier.model.num_parameters():,} parameters, {classifier.task.size}")

    banner("data")
    images, normalize = read_images(export, data, evaluation, classifier), classifier.normalize
    measured = images["measured"]
    fact("images", f"{len(measured):,} of {evaluation.split} of {data.data_dir or data.dataset}")

    def batches(of: "Images") -> Iterator[torch.Tensor]:
        for rows in torch.arange(len(of)).split(evaluation.batch_size):
            yield normalize(of.pixels(rows))

    banner("export")
    sample = normalize(measured.sample(32))
    plain = plain_model(classifier.model, sample)
    score, title = measured.task.score, measured.task.score_metric.title
    reference = Reference(plain, sample, lambda: batches(measured), measured.labels, measured.task)
    size = sum(tensor.nbytes for tensor in plain.state_dict().values()) / 1e6
    runners, rows = {"pytorch": plain}, {"pytorch": {"megabytes": size}}
    with written_aside(folder) as aside:
        program = capture(plain, take(sample, 2))
        for name in export.format:
            path = aside / FORMATS[name]
            write(name, program, path, batches(images["calibration"]) if name == "int8" else ())
            runners[name] = load(path)
            difference = reference.check(name, runners[name], TOLERANCES[name])
            rows[name] = {"megabytes": megabytes(path), "file": path.name, "largest_difference": difference}
            exact = f"logits within {difference:.1e} of PyTorch's"
            fact(name, f"calibrated on {len(images['calibration'])} images of train" if name == "int8" else exact)

        banner("measure")
        for name, runner in runners.items():
            rows[name] |= reference.measure(runner, export.repeats)
            fact(name, f"{title} {rows[name][score]:.4f}")
        record = describe(export, data, evaluation, images, rows)
        write_preprocessing(aside, classifier, sample)
        (aside / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    banner("done")
    show(record, score, title)
    fact("folder", folder)
    if "int8" in rows and (lost := rows["pytorch"][score] - rows["int8"][score]) > LOSS_TO_TELL:
        fact("", f"int8 loses {100 * lost:.1f} points of {title}, which onnx keeps")


def read_images(
    export: argparse.Namespace,
    data: DataArguments,
    evaluation: EvaluationArguments,
    classifier: "Classifier",
) -> "dict[str, Images]":
    """The images that are `measured`, labelled as the model's classes are, and those for `calibration` of int8."""
    from datasets import DatasetDict

    from ftkit.data.feeding.engine import load_images
    from ftkit.data.pixels.images import describe_images
    from ftkit.data.sources.load import load_data

    splits = load_data(data)
    labelled = classifier.task.relabel(splits[evaluation.split], f"split {evaluation.split}")
    chosen = {"measured": take_some(labelled, export.max_images)}
    if "int8" in export.format:
        chosen["calibration"] = take_some(splits["train"], CALIBRATION_IMAGES)
    channels = classifier.channels_of(describe_images(chosen["measured"]))
    data.image_transform = None  # is for training
    return load_images(DatasetDict(chosen), classifier.processor, channels, data, seed=0)


def describe(
    export: argparse.Namespace,
    data: DataArguments,
    evaluation: EvaluationArguments,
    images: "dict[str, Images]",
    rows: dict,
) -> dict:
    """What is written to `export.json`: the command, what was measured on, where, and a row for each format."""
    from ftkit.evaluation.record import describe_command
    from ftkit.training.provenance import environment

    record = {
        "command": describe_command(),
        "model": evaluation.model,
        "data": data.data_dir or data.dataset,
        "split": evaluation.split,
        "n": len(images["measured"]),
        "calibration_images": len(images.get("calibration", ())),
        "device": "cpu",
        "repeats": export.repeats,
        **environment(),
        "formats": rows,
    }
    record["versions"] |= {name: version(name) for name in needed_packages(export.format)}
    return record


def show(record: dict, score: str, title: str) -> None:
    """The table, on standard output, with the score by its key and its title."""
    repeats, threads, n = record["repeats"], record["threads"], record["n"]
    print(f"  milliseconds on the CPU with {threads} thread{'s' * (threads > 1)}, over {repeats} repeats; {title} on "
          f"{n:,} images of {record['split']}\n")  # fmt: skip
    print(f"  {'':<12} {'':>8}   {'a batch of 1':>17}   {'a batch of 32':>17}   {'':>8}   predictions")
    print(f"  {'':<12} {'MB':>8}   {'median':>8} {'p95':>8}   {'median':>8} {'p95':>8}   {title:>8}   as PyTorch's")
    for name, row in record["formats"].items():
        times = "   ".join(f"{time['median']:>8.2f} {time['p95']:>8.2f}" for time in row["milliseconds"].values())
        print(f"  {name:<12} {row['megabytes']:>8.3f}   {times}   {row[score]:>8.4f}   "
              f"{row['same_predictions']:>12.3%}")  # fmt: skip


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
