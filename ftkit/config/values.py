"""What the values of several arguments have in common."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Options = dict[str, Any]  # what is left once the argument is checked
else:
    Options = dict | str  # what the parser takes: JSON text too


def from_json(text: str) -> Any:
    """What JSON text stands for; the text itself where it is no JSON, for `check()` to name."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # numbers of too many digits, and what is nested too deeply, are none either
        return text
