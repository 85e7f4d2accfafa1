"""Values that several arguments share."""

import json
from typing import Any


def from_json(text: str) -> Any:
    """The value of JSON; the text itself if it is not JSON, for `check()` to report."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # includes numbers of too many digits and deep nesting
        return text
