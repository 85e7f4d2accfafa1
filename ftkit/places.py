"""Keep this machine's folders out of what others read: a path is shown as its last part."""

import json
import os.path
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftkit.errors import without_tokens

# The start of a path, which no Hub name has: absolute, relative to `.`, `..` or `~`, a Windows drive or share, a URL.
_PATH = re.compile(r"/|~|\.{1,2}(?:[\\/]|$)|[a-z]:(?:[\\/]|$)|\\\\|file:", re.IGNORECASE)
_SURELY = re.compile(r"/[^/]+/.|~[\w.-]*/.|\.\.[\\/].|[a-z]:[\\/].|\\\\\w|file:/", re.IGNORECASE)
_NO_NAME = re.compile(r"|\.|\.\.|~.*|[a-z]:|file:", re.IGNORECASE)  # parts of a path that name no file or folder
_RECIPES = Path(__file__).parents[1] / "recipes"


def is_path(text: str) -> bool:
    """Whether a text is a path, on this or another machine, rather than the name of a model or dataset on the Hub."""
    return _PATH.match(text) is not None or os.path.exists(text)


def shown(place: str) -> str:
    """The last part of a path; any other text, such as a name on the Hub, unchanged.

    The `model` folder of a run is shown as the run's folder, and files in ftkit's `recipes/` keep the path from there.
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
    """A JSON value with `shown` applied to every string that is certainly a path."""
    if isinstance(value, dict):
        return {key: all_shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [all_shown(inner) for inner in value]
    return shown(value) if isinstance(value, str) and _SURELY.match(value) else value


def command_shown(words: list[str], show: Callable[[str], Any] = shown) -> list[str]:
    """A command line without tokens and local paths: `show` is applied to its values, `all_shown` to JSON."""
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
    """Apply `all_shown` to a JSON file; write it only if that changes it."""
    value = json.loads(file.read_text(encoding="utf-8"))
    if (clean := all_shown(value)) != value:
        file.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
