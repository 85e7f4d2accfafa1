"""Which columns of a table hold images and labels, by their names and by what they hold."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pandas as pd

from ftkit.config import DataArguments
from ftkit.errors import listed

from .suffixes import is_image_name
from .tables import NoListing

# Usual names of columns, in lower case without blanks and underscores.
_IMAGES = {
    "image", "images", "img", "file", "files", "filename", "filenames", "path", "paths", "filepath", "filepaths", "id",
    "imagepath", "imgpath", "imagename", "imgname", "imagefile", "imagefilename", "imageid", "imgid", "picture",
    "photo",
}  # fmt: skip
_LABELS = {
    "label", "labels", "class", "classes", "cls", "target", "targets", "category", "classname", "labelname",
    "categoryname", "classlabel", "classid", "labelid", "categoryid",
}  # fmt: skip
_SAMPLE = 20  # rows that show whether a column names images
_NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")
_LISTED = 20  # columns in a message


def choose_image(
    table: pd.DataFrame, path: Path, names_images: Callable[[pd.Series], bool], args: DataArguments
) -> tuple[str, str | None]:
    """The image column, which `args` names or whose values name images, and what is unclear about it.

    Args:
        table: text, or None.
        path: its file, for messages.
        names_images: whether values name images that exist.

    Raises:
        NoListing: no column can hold images.
    """
    rows = sample(table)

    def fits(name: str) -> bool:
        return not is_nested(rows[name]) and 2 * rows[name].nunique() > len(rows) and names_images(rows[name])

    usual = [name for name in table.columns if _plain(name) in _IMAGES or _plain(name).endswith("filename")]
    called = [name for name in usual if fits(name)]
    called = called or [name for name in table.columns if name not in usual and fits(name)] or usual
    missing = [name for name in usual if name not in called and _are_image_names(rows[name])]
    if args.image_column is None and missing and len(called) == 1 and _are_numbers(rows[called[0]]):
        return called[0], (
            f"image_column is ambiguous: {missing[0]!r} names no existing images, but the numbers in {called[0]!r} "
            f"may: set it to {called[0]!r} if they do"
        )
    image, problem = _choose(table, path, "image_column", args.image_column, called, called)
    if image is None:
        pixels = any(_plain(name).startswith("pixel") for name in table.columns)
        hint = "; pixels in a text file are not read: save them as image files" if pixels else ""
        raise NoListing(f"{path}: {problem}{hint}")
    return image, problem


def choose_label(
    table: pd.DataFrame, path: Path, args: DataArguments, known: Collection[str] = ()
) -> tuple[str | None, str | None]:
    """The label column, or the one to recommend, and what is unclear about it; None without one.

    It is the one that `args` names, the only one with a usual name, or the only one there is.

    Args:
        table: the columns that hold neither images nor splits, as text.
        path: its file, for messages.
        known: known classes; the only column that holds nothing else is the label column.
    """
    called = [name for name in table.columns if _plain(re.sub(r"\.\d+$", "", name)) in _LABELS]  # pandas numbers twins
    if not called:
        called = [
            name for name in table.columns if known and not is_nested(table[name]) and {*table[name]} <= {*known}
        ]
    columns = called or table.columns
    classes = [n for n in columns if holds_classes(table[n])] or [n for n in columns if holds_classes(table[n], 1)]
    classes.sort(key=lambda name: _plain(name).endswith("id"))
    if args.label_column is None and not called and (reason := one_hot(table)):
        return None, reason
    if classes and not called and (table.shape[1] == 1 or (len(classes) > 1 and _same_partition(table, classes))):
        called = classes
    label, problem = _choose(table, path, "label_column", args.label_column, called, classes)
    return label, problem if label or called else None


def _are_image_names(values: pd.Series) -> bool:
    return all(isinstance(value, str) and is_image_name(value) for value in values)


def is_usual(name: str) -> bool:
    """Whether a column's name is usual for images or labels."""
    return _plain(name) in _IMAGES | _LABELS


def sample(table: pd.DataFrame) -> pd.DataFrame:
    """Some rows, from the first to the last."""
    return table.iloc[:: max(1, len(table) // _SAMPLE)]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _choose(
    table: pd.DataFrame, path: Path, key: str, given: str | None, called: list[str], fitting: list[str]
) -> tuple[str | None, str | None]:
    """The column to use, or one to recommend and what is unclear.

    Args:
        table: the whole table.
        called: the columns with a usual name.
        fitting: the columns to recommend, by what they hold.
    """
    columns = list(table.columns)
    if given in columns:  # otherwise it is a column of another table
        return given, None
    if len(called) == 1:
        return called[0], None
    if called and (same := _same_partition(table, called)):
        return same, None
    state, shown = ("ambiguous", called) if called else ("missing", columns)
    advice = f"set it to {' or '.join(map(repr, fitting[:5]))}" if fitting else _EXPECTED[key]
    return next(iter(fitting), None), f"{key} is {state}: {advice} (columns: {listed(shown, _LISTED)})"


_EXPECTED = {
    "image_column": "no column names images that exist",
    "label_column": "no column holds classes, that is, two or more values that repeat",
}


def _same_partition(table: pd.DataFrame, columns: list[str]) -> str | None:
    """The name among equivalent columns, such as an id and a name; None if they are not equivalent."""
    if any(is_nested(table[name]) for name in columns):
        return None
    first = pd.factorize(table[columns[0]])[0]
    if not all((pd.factorize(table[name])[0] == first).all() for name in columns[1:]):
        return None
    return min(columns, key=lambda name: (_are_numbers(table[name]), _plain(name).endswith("id")))


def is_nested(values: pd.Series) -> bool:
    """Whether a column holds lists or objects."""
    return any(isinstance(value, (list, dict, np.ndarray)) for value in values)


def holds_classes(values: pd.Series, most: float = 0.5) -> bool:
    """Whether a column can hold classes: two values or more that repeat, at most `most` per row, no fractions."""
    if is_nested(values) or values.isna().any():
        return False
    return 2 <= values.nunique() <= min(most * len(values), len(values) - 1) and not are_fractions(values)


def are_fractions(values: pd.Series) -> bool:
    """Whether all values are numbers, and some of them are not whole."""
    return _are_numbers(values) and any(not float(value).is_integer() for value in values.unique())


def _are_numbers(values: pd.Series) -> bool:
    return all(value is not None and _NUMBER.fullmatch(value) for value in values.unique())


def one_hot(table: pd.DataFrame) -> str | None:
    """What is wrong with a table that has a column of zeros and ones for each class; None if it has none."""
    columns = [name for name in table.columns if not is_nested(table[name])]
    columns = [name for name in columns if set(table[name]) <= {"0", "1", "0.0", "1.0"}]
    if len(columns) < 2 or all(table[name].nunique() == 1 for name in columns):
        return None
    names = listed(columns)
    if (table[columns].astype(float).sum(axis=1) == 1).all():
        return (
            f"its columns {names} mark an image's class with a 1 (one-hot), and ftkit reads one column of class "
            f"names: add it, for example with pandas: table['label'] = table[{columns[:5]}].idxmax(axis=1)"
        )
    return f"its columns {names} may mark several classes of an image, and ftkit learns one class for each image"
