"""Private names of Python's own library."""

import argparse
import atexit


def option_strings(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a parser by their names, such as `--seed`; argparse gives no public list."""
    return parser._option_string_actions


def run_exit_functions() -> None:
    """Run what `atexit` holds, for a process that leaves by `os._exit`, which runs nothing."""
    atexit._run_exitfuncs()
