"""The command lines of the scripts that take no recipe."""

import argparse
import os
from typing import Any, NoReturn

from ftkit.errors import ConfigError, UserError


class ScriptParser(argparse.ArgumentParser):
    """Parser of a single-process script: options cannot be abbreviated, and mistakes raise `UserError`.

    Raises:
        ConfigError: the script was launched in several processes, which would each repeat all the work.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError([f"{self.prog} works in one process: start it with python recipes/{self.prog}"])

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}: see --help")


def whole_number(text: str) -> int:
    """A positive integer, as the `type` of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def boolean(text: str) -> bool:
    """true or false, as the `type` of an option."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


def port(text: str) -> int:
    """The number of a TCP port, as the `type` of an option."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 65535")
    return int(text)
