"""Classify images with a saved model: the likeliest labels of each, with their probabilities.

    python recipes/predict.py --model runs/digits-convnet-scratch path/to/images
    python recipes/predict.py --model path/to/model 'photos/**/*.jpg' one/more.png --top_k 3
    python recipes/predict.py --model path/to/model - --format csv --output labels.csv < list_of_paths.txt

Takes image files, folders (all images below them), patterns in quotes, and `-` for paths from standard input, one per
line. Images are preprocessed as in recipes/eval.py. An image that does not decode is reported on standard error and
skipped; the others are still classified, and the exit code is 1.
"""

import argparse
import contextlib
import sys
import warnings
from pathlib import Path

from ftkit.compat.python import option_strings
from ftkit.config.scripts import ScriptParser, whole_number
from ftkit.errors import ConfigError, UserError, nearest, printable, user_errors
from ftkit.evaluation.inputs import find_images
from ftkit.evaluation.listing import FORMATS, opened
from ftkit.models.checks import check_saved


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line, without looking at the files yet.

    Raises:
        UserError: an option is unknown, or its value is invalid.
        ConfigError: there are other errors; lists all of them.
    """
    parser = ScriptParser(prog="predict.py", description=__doc__.partition("\n")[0])
    parser.add_argument("inputs", nargs="*", help="image files, folders, patterns in quotes, or - for a list of paths")
    parser.add_argument("--model", help="a folder (of a model, or of a run) or a name on the Hub")
    parser.add_argument("--top_k", "--top-k", type=whole_number, default=1, help="labels per image (default: 1)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the output (default: table)")
    parser.add_argument("--output", type=Path, help="a new file (default: standard output)")
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
    """Classify images and return the exit code; `arguments` is the command line without the program's name."""
    args = parse_arguments(arguments)
    files = find_images(args.inputs)

    import transformers
    from tqdm import tqdm

    from ftkit.evaluation.inference import check_room, classify
    from ftkit.memory import enough_memory
    from ftkit.models.classifier import Classifier

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a bad file is reported once, in one line
    classifier = Classifier.load(args.model, args.revision, args.trust_remote_code)
    check_room(classifier, len(files), args.batch_size)
    top_k, failed = min(args.top_k, len(classifier.task.names)), 0
    short = enough_memory("classifying", "set a smaller batch_size")
    with contextlib.suppress(BrokenPipeError), short, opened(args.output) as out:
        write = FORMATS[args.format](out, files, top_k)
        for batch in classify(classifier, files, top_k, args.batch_size):
            with tqdm.external_write_mode():  # hides the progress bar
                for file, answers in zip(batch.files, batch.answers, strict=True):
                    write(file, answers)
                out.flush()
                for bad in batch.bad:
                    print(f"{printable(bad['file'])}: {printable(bad['reason'])}", file=sys.stderr)
            failed += len(batch.bad)
    return 1 if failed else 0


if __name__ == "__main__":
    with user_errors():
        sys.exit(main(sys.argv[1:]))
