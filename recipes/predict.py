"""Classify images with a saved model: the likeliest labels of each, with their probabilities.

    python recipes/predict.py --model runs/digits-convnet-scratch path/to/images
    python recipes/predict.py --model path/to/model 'photos/**/*.jpg' one/more.png --top_k 3
    python recipes/predict.py --model path/to/model - --format csv --output labels.csv < list_of_paths.txt

Takes image files, folders (all images below them), patterns in quotes, and `-` for paths from standard input, one on
each line. The pixels are those of recipes/eval.py. An image that does not decode is told on standard error and
left out, the others are classified all the same, and the exit code is 1.
"""

import argparse
import contextlib
import csv
import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from ftkit.compat.python import option_strings
from ftkit.config.scripts import ScriptParser, whole_number
from ftkit.errors import ConfigError, UserError, nearest, printable, user_errors
from ftkit.models.checks import check_saved

Write = Callable[[str, list[tuple[str, float]]], None]  # takes a file, and its labels with their probabilities


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; files are not looked for yet.

    Raises:
        UserError: an option is unknown, or has no value that it can take.
        ConfigError: with what is wrong otherwise.
    """
    parser = ScriptParser(prog="predict.py", description=__doc__.partition("\n")[0])
    parser.add_argument("inputs", nargs="*", help="image files, folders, patterns in quotes, or - for a list of paths")
    parser.add_argument("--model", help="a folder (of a model, or of a run) or a name on the Hub")
    parser.add_argument("--top_k", "--top-k", type=whole_number, default=1, help="labels per image (default: 1)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="for people (default), or for programs")
    parser.add_argument("--output", type=Path, help="a new file; standard output otherwise")
    parser.add_argument(
        "--batch_size", "--batch-size", type=whole_number, default=128, help="most images per batch (default: 128)"
    )
    parser.add_argument("--revision", help="a branch, tag or commit of the model on the Hub")
    parser.add_argument(
        "--trust_remote_code",
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the model; only for a source that you trust",
    )
    args, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        option, valid = unknown[0].partition("=")[0], [text for text in option_strings(parser) if text != "-h"]
        raise UserError(f"{option}: there is no such option{nearest(option, valid)}: see --help")
    if args.model is None:
        raise UserError("model is missing: give --model a folder or a name on the Hub")
    if not args.inputs:
        raise UserError("nothing to classify: name images, folders, patterns, or - for paths from standard input")
    errors = check_saved(args.model)
    if args.output is not None and args.output.exists():
        errors.append(f"output: {args.output} exists: give the name of a new file")
    if args.output is not None and not args.output.parent.is_dir():
        errors.append(f"output: the folder {args.output.parent} does not exist: make it first")
    if errors:
        raise ConfigError(errors)
    return args


def main(arguments: list[str]) -> int:
    """Classify as `arguments`, a command line without the program's name, say; returns the exit code."""
    args = parse_arguments(arguments)
    inputs = list(named(args.inputs))

    from ftkit.evaluation.inference import find_images

    files = find_images(inputs)

    import transformers
    from tqdm import tqdm

    from ftkit.evaluation.inference import classify
    from ftkit.models.classifier import Classifier

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a file is told once, and in one line
    classifier = Classifier.load(args.model, args.revision, args.trust_remote_code)
    top_k, failed = min(args.top_k, len(classifier.task.names)), 0
    with contextlib.suppress(BrokenPipeError), opened(args.output) as out:
        write = FORMATS[args.format](out, files, top_k)
        for batch in classify(classifier, files, top_k, args.batch_size):
            with tqdm.external_write_mode():  # the bar steps aside
                for file, answers in zip(batch.files, batch.answers, strict=True):
                    write(file, answers)
                out.flush()
                for bad in batch.bad:
                    print(f"{printable(bad['file'])}: {printable(bad['reason'])}", file=sys.stderr)
            failed += len(batch.bad)
    return 1 if failed else 0


def named(inputs: list[str]) -> Iterator[str]:
    """The inputs, with the lines of standard input in the place of `-`.

    Raises:
        UserError: standard input holds none.
    """
    for name in inputs:
        if name != "-":
            yield name
            continue
        sys.stdin.reconfigure(errors="surrogateescape")  # as for the names on the command line
        lines = [line for line in sys.stdin.read().replace("\r\n", "\n").split("\n") if line]
        if not lines:
            raise UserError("-: standard input is empty: expected paths, one on each line")
        yield from lines


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[TextIO]:
    """A new file, or standard output, as UTF-8 without any change of line ends.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8", newline="")
        try:
            yield sys.stdout
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
            raise
        return
    try:
        file = path.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"output: {path} cannot be written: {error.strerror}") from error
    with file:
        yield file


def table(out: TextIO, files: list[str], top_k: int) -> Write:
    """Columns for people, a line for each label."""
    width = max(len("file"), *(columns(printable(file)) for file in files))
    out.write(f"{'file':<{width}}  probability  label\n")

    def write(file: str, predictions: list[tuple[str, float]]) -> None:
        place = printable(file)
        for label, probability in predictions:
            out.write(f"{place}{' ' * (width - columns(place))}  {probability:11.4f}  {printable(label)}\n")
            place = ""

    return write


def jsonl(out: TextIO, files: list[str], top_k: int) -> Write:
    """A JSON object on each line."""

    def write(file: str, predictions: list[tuple[str, float]]) -> None:
        rows = [{"label": label, "probability": significant(probability)} for label, probability in predictions]
        out.write(json.dumps({"file": file, "predictions": rows}, ensure_ascii=False) + "\n")

    return write


def comma_separated(out: TextIO, files: list[str], top_k: int) -> Write:
    """CSV with lines that end as RFC 4180 wants it: the `csv` module quotes every other line end only then."""
    writer = csv.writer(out)
    writer.writerow(["file", *(f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "probability"))])

    def write(file: str, predictions: list[tuple[str, float]]) -> None:
        writer.writerow([file, *(cell for label, p in predictions for cell in (label, significant(p)))])

    return write


FORMATS = {"table": table, "jsonl": jsonl, "csv": comma_separated}


def significant(probability: float) -> float:
    """Six digits, which is what float32 is good for."""
    return float(f"{probability:.6g}")


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main(sys.argv[1:]))
