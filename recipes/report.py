"""Write the report of a run again: metrics, page and Markdown, from the stored predictions.

    python recipes/report.py runs/digits-convnet-scratch

The files are the same, byte for byte. It takes a run's folder, or one that recipes/eval.py wrote.
"""

import argparse
import sys
from pathlib import Path

from ftkit.config.scripts import ScriptParser
from ftkit.errors import user_errors


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line of this script."""
    parser = ScriptParser(prog="report.py", description="Write the report of a run again.")
    parser.add_argument("run", type=Path, help="the folder of a run, or of an evaluation")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Write the report; `arguments` is the command line without the program's name."""
    run = parse_arguments(arguments).run

    from ftkit.evaluation.predictions import write_metrics
    from ftkit.evaluation.report import evaluation_folder, write_report

    write_metrics(evaluation_folder(run))
    print(write_report(run))


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
