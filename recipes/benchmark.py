"""Time ftkit's data path and training loop against their baselines.

    python recipes/benchmark.py
    python recipes/benchmark.py --rows mnist_loader,augmentation --rounds 5 --mnist_dir path/to/mnist
    python recipes/benchmark.py --images 2000 --steps 3 --rounds 1 --cifar_dir path/to/cifar10 --output /tmp/look

Absolute times are not comparable between runs on a busy machine; ratios are, because the sides of a row take turns.
Each row prints the median and all rounds of its sides, and the ratios with their targets, and is stored as a JSON file
in `--output`. recipes/benchmarks/ has a module for each row; its `__init__.py` says what they measure.

MNIST and CIFAR-10 are looked up as by recipes/finetune.py: in `FTKIT_DATA_DIR`, then on the Hub.
"""

import datetime
import statistics
import sys
import tempfile
import traceback
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import ROWS

from ftkit.config.scripts import ScriptParser, whole_number
from ftkit.errors import UserError, nearest, user_errors


def parse_arguments(arguments: list[str]) -> Namespace:
    """The command line, checked."""
    parser = ScriptParser(prog="benchmark.py", formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="what to measure, in this order")
    parser.add_argument("--rounds", type=whole_number, default=3, help="how often each side runs")
    parser.add_argument("--images", type=whole_number, help="at most this many images in every row, for a quick look")
    parser.add_argument("--steps", type=whole_number, default=25, help="training steps of cifar_resnet18")
    parser.add_argument("--mnist_dir", help="a folder with MNIST")
    parser.add_argument("--cifar_dir", help="a folder with CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="the folder of the results")
    args = parser.parse_args(arguments)
    args.rows = list(dict.fromkeys(args.rows.split(",")))
    for name in args.rows:
        if name not in ROWS:
            raise UserError(f"--rows: {name!r} is not one of {', '.join(ROWS)}{nearest(name, list(ROWS))}")
    return args


def measure_row(name: str, args: Namespace) -> dict[str, Any]:
    """Measure one row and return its result."""
    from benchmarks.data import Bench, read_config
    from benchmarks.record import definition, machine
    from benchmarks.timing import measure

    from ftkit.console import set_up_console
    from ftkit.training.provenance import environment

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(args, Path(folder), stack)
        training = read_config(bench, "digits").training
        set_up_console(training)
        record = {
            "kind": "benchmark",
            "command": f"python recipes/benchmark.py --rows {name}",
            **measure(import_module(f"benchmarks.{name}").row(bench), args.rounds),
            "limits": {"rounds": args.rounds, "images": args.images, "steps": args.steps},
            "environment": environment() | machine() | {"device": str(training.device)},
            "date": datetime.date.today().isoformat(),
        }
    return record | {"definition": definition(f"benchmarks/{name}", record)}


def show(name: str, record: dict[str, Any]) -> None:
    """Print a result: a line for each side and each goal."""
    print(f"{name}: {record['what']} ({record['measure'].replace('_', ' ')})")
    for side, number in record["numbers"].items():
        each = " ".join(f"{value:.3g}" for value in number["values"])
        speeds = [
            found["images_per_second"] for found in record["rounds"].get(side, ()) if "images_per_second" in found
        ]
        speed = f"  {statistics.median(speeds):,.0f} images/s" if speeds else ""
        print(f"  {side:<12} {number['median']:>8.3g}  each round: {each}{speed}")
    for goal in record["goals"]:
        verdict = "met" if goal["met"] else "MISSED"
        print(f"  {goal['what']} = {goal['value']:.3g}, target {goal['target']}: {verdict}")


def main(arguments: list[str]) -> None:
    """Measure the rows; `arguments` is the command line without the program's name."""
    args = parse_arguments(arguments)
    from benchmarks.record import write_result

    from ftkit.console import banner

    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: cannot be written: {error}") from error
    failed = []
    for name in args.rows:
        banner(name)
        try:
            record = measure_row(name, args)
        except Exception as error:  # printed; the other rows are still measured
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"{name}: FAILED: {type(error).__name__}: {error}")
            failed.append(name)
        else:
            show(name, record)
            write_result(args.output / f"{name}.json", record)
    print(f"\nwritten: {args.output}")
    if failed:
        raise UserError(f"not measured, see above: {', '.join(failed)}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
