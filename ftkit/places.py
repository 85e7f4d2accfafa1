"""How files and folders are called in what others read: by their own name, without the folders of this machine."""

import json
import os.path
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftkit.errors import without_tokens

# A path, and no name on the Hub: absolute or from here, of a home folder, a Windows drive or share, or as an address.
_PATH = re.compile(r"/|~|\.{1,2}(?:[\\/]|$)|[a-z]:(?:[\\/]|$)|\\\\|file:", re.IGNORECASE)
_SURELY = re.compile(r"/[^/]+/.|~[\w.-]*/.|\.\.[\\/].|[a-z]:[\\/].|\\\\\w|file:/", re.IGNORECASE)
_NO_NAME = re.compile(r"|\.|\.\.|~.*|[a-z]:|file:", re.IGNORECASE)  # parts of a path that name no file or folder
_RECIPES = Path(__file__).parents[1] / "recipes"


def is_path(text: str) -> bool:
    """Whether a text names a file or folder, of this or another machine, and not a model or dataset on the Hub."""
    return _PATH.match(text) is not None or os.path.exists(text)


def shown(place: str) -> str:
    """The name of a place for others: the last part of a path; anything else, such as a name on the Hub, unchanged.

    The folder `model` of a run is called by its run, and the files in ftkit's `recipes/` keep their folders.
    """
    if not is_path(place):
        return place
    path = Path(os.path.abspath(os.path.expanduser(place)))
    if path.is_relative_to(_RECIPES):
        return path.relative_to(_RECIPES.parent).as_posix()
    if path == Path.home():
        return "~"
    if path.name == "model" and (path.parent / "run.json").is_file():
        return path.parent.name
    here = str(path) if os.path.exists(path) else place
    return next((part for part in reversed(re.split(r"[\\/]", here)) if not _NO_NAME.fullmatch(part)), "~")


def all_shown(value: Any) -> Any:
    """A value as in JSON, in which every text that is surely a path is `shown`."""
    if isinstance(value, dict):
        return {key: all_shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [all_shown(inner) for inner in value]
    return shown(value) if isinstance(value, str) and _SURELY.match(value) else value


def command_shown(words: list[str], show: Callable[[str], Any] = shown) -> list[str]:
    """The words of a command line for others: options, values by `show`, and values that are JSON."""
    return [without_tokens(_word_shown(word, show)) for word in words]


def _word_shown(word: str, show: Callable[[str], Any]) -> str:
    option, equals, value = word.partition("=")
    if word.startswith("--"):
        return f"{option}={_word_shown(value, show)}" if equals else word
    if not word.startswith(("{", "[")):
        return show(word)
    try:
        return json.dumps(all_shown(json.loads(word)), ensure_ascii=False)
    except ValueError:
        return word


def clean_json(file: Path) -> None:
    """Rewrite a JSON file with `all_shown`, if that changes it."""
    value = json.loads(file.read_text(encoding="utf-8"))
    if (clean := all_shown(value)) != value:
        file.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
