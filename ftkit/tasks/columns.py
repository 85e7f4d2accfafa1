"""Columns of a dataset, found by name or type, and read as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Value

from ftkit.errors import UserError, nearest


def find_column(
    dataset: Dataset, key: str, given: str | None, types: tuple[type, ...], kind: str, fitting: Sequence[str] = ()
) -> str:
    """The name of the column: the given one, or the only one of these feature types.

    Args:
        key: the configuration key that names the column, for messages.
        given: the value of the key.
        types: the feature types to look for.
        kind: a word for the column's content, for messages.
        fitting: columns to recommend if none has the type.

    Raises:
        UserError: the given column is missing, or none or several have the type.
    """
    columns = own_columns(dataset)
    if given is not None:
        if given not in columns:
            raise UserError(
                f"{key}: {given!r} is not a column of the data{nearest(given, columns)}: {', '.join(columns)}"
            )
        return given
    found = [name for name, feature in dataset.features.items() if isinstance(feature, types)]
    if len(found) == 1:
        return found[0]
    state = f"{len(found)} columns are {kind}s" if found else f"no column is a {kind}"
    described = {name: f"{name} ({type_name(dataset.features[name])})" for name in columns}
    if not (fitting := found or fitting):
        raise UserError(f"{key}: {state}: the data have the columns {', '.join(described.values())}")
    others = ", ".join(text for name, text in described.items() if name not in fitting)
    raise UserError(
        f"{key}: {state}: set {key} to {' or '.join(described[name] for name in fitting)}"
        f"{f'; the other columns are {others}' if others else ''}",
        fix={key: fitting[0]},
    )


def own_columns(dataset: Dataset) -> list[str]:
    """The columns of the data, without those that their reader added."""
    return [name for name in dataset.column_names if not name.startswith("__")]


def type_name(feature: Any) -> str:
    """The type of a column, for messages."""
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def column(dataset: Dataset, name: str) -> np.ndarray:
    """A column of numbers as an array, read from Arrow at once (a formatted column is read row by row)."""
    return dataset.select_columns(name).with_format("arrow")[:][name].to_numpy()
