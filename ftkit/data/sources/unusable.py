"""Splits that cannot be used: training can carve others out of train, and an evaluation does without them."""

from collections.abc import Iterable
from typing import Any

from ftkit.config.arguments.data import NO_SPLIT
from ftkit.errors import UserError, as_options


class Unusable(UserError):
    """Splits of the data without images or labels.

    Attributes:
        problem: what is wrong.
        advice: how to make them usable.
        splits: those affected, of `train`, `validation` and `test`.
        without: the settings that leave these splits out.
    """

    def __init__(self, problem: str, splits: Iterable[str], advice: str):
        """The message is for training: `advice`, or to carve the splits out of train."""
        self.problem, self.advice, self.splits = problem, advice, list(dict.fromkeys(splits))
        self.without: dict[str, Any] = {f"{split}_split": NO_SPLIT for split in self.splits}
        fix: dict[str, Any] = {}
        ways = [advice]
        if "train" not in self.splits:
            fix = self.without
            ways.append(f"set {as_options(fix)} to carve {' and '.join(self.splits)} out of train")
        super().__init__(f"{problem}: {', or '.join(ways)}", fix)
