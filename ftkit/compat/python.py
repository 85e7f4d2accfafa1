"""Private names of Python's standard library."""

import argparse
import atexit


def option_strings(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a parser by name, such as `--seed`; argparse has no public list."""
    return parser._option_string_actions


def run_exit_functions() -> None:
    """Run the functions registered with `atexit`, for a process that ends by `os._exit`, which skips them."""
    atexit._run_exitfuncs()
