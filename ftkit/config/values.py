"""Values that several arguments share."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The type of a checked argument.
    Options = dict[str, Any]
    StageList = list[dict[str, Any]]
else:
    # The type for the parser: JSON text too.
    Options = dict | str
    StageList = list | str


def from_json(text: str) -> Any:
    """The value of JSON; the text itself if it is not JSON, for `check()` to report."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # includes numbers of too many digits and deep nesting
        return text
