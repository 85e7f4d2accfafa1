"""How a file or folder is called in what others read: by its own name, without the folders of this machine."""

import json
import os.path
import re
from pathlib import Path
from typing import Any

# A path that cannot be anything else: absolute, of a home folder, of a Windows drive or share, or an address of one.
_ROOTED = re.compile(r"/|~|\.{1,2}(?:[\\/]|$)|[A-Za-z]:(?:[\\/]|$)|\\\\|file:", re.IGNORECASE)
_RECIPES = Path(__file__).parents[1] / "recipes"


def is_path(text: str) -> bool:
    """Whether a text names a file or folder, here or on another machine, and not a name on the Hub or an option."""
    return bool(_ROOTED.match(text)) or (os.path.exists(text) and bool(text)) or "/../" in text or "\\" in text


def shown(place: str) -> str:
    """A place as others may read it: the last part of a path, and anything else, such as a name on the Hub, unchanged.

    The model of a run, `<run>/model`, is called by its run; the files of ftkit's `recipes/` keep their folder.
    """
    if not is_path(place):
        return place
    path = Path(place).expanduser()
    if path.is_absolute() or path.exists():
        path = Path(os.path.abspath(path))
        if path.is_relative_to(_RECIPES):
            return path.relative_to(_RECIPES.parent).as_posix()
        if path == Path.home():
            return "~"
    parts = [part for part in re.split(r"[\\/]", str(path)) if part and not re.fullmatch(r"[A-Za-z]:|file:|~.*", part)]
    last = parts[-2:] if parts[-1:] == ["model"] else parts[-1:]
    return last[0] if last else "~"


def all_shown(value: Any) -> Any:
    """A value of a configuration with every text in it as `shown`."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: all_shown(inner) for key, inner in value.items()}
    return [all_shown(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def shown_word(word: str) -> str:
    """A word of a command line as others may read it: an option's value, or JSON."""
    option, equals, value = word.partition("=")
    if word.startswith("-"):
        return f"{option}{equals}{shown_word(value)}" if equals else word
    if word[:1] in ("{", "["):
        try:
            return json.dumps(all_shown(json.loads(word)), ensure_ascii=False)
        except ValueError:
            pass
    return shown(word)
