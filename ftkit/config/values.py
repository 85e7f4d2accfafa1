"""What the values of several arguments have in common."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What a checked argument is.
    Options = dict[str, Any]
    StageList = list[dict[str, Any]]
else:
    # What the parser takes: JSON text too.
    Options = dict | str
    StageList = list | str


def from_json(text: str) -> Any:
    """What JSON text stands for; the text itself where it is no JSON, for `check()` to name."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # numbers of too many digits, and what is nested too deeply, are none either
        return text
