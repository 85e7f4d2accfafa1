"""Which columns of a table hold images and labels, by their names and by what they hold."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pandas as pd

from ftkit.config import DataArguments
from ftkit.errors import UserError, nearest

from .tables import NoListing

# As columns are called, without blanks, underscores and capitals.
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


def choose_columns(
    table: pd.DataFrame,
    path: Path,
    names_images: Callable[[pd.Series], bool],
    args: DataArguments,
    known: Collection[str] = (),
) -> tuple[str, str | None]:
    """The columns of images and labels: those that `args` name, or the only ones with a usual name.

    The column of labels is None if no column holds classes; they may be the names of folders.

    Args:
        table: text, or None.
        path: its file, for messages.
        names_images: whether values name images that exist.
        known: classes; the only column that holds nothing else is the column of labels.

    Raises:
        NoListing: no column can hold images.
        UserError: a column that is named is missing, or a column is not clear; its `fix` names both.
    """
    rows = sample(table)

    def fits(name: str) -> bool:
        return not is_nested(rows[name]) and 2 * rows[name].nunique() > len(rows) and names_images(rows[name])

    usual = [name for name in table.columns if _plain(name) in _IMAGES or _plain(name).endswith("filename")]
    called = [name for name in usual if fits(name)]
    if not called and not (others := [name for name in table.columns if name not in usual and fits(name)]):
        called = usual
    image, problem = _choose(table, path, "image_column", args.image_column, called, called or others)
    rest = table.drop(columns=[image] if image else [])
    called = [name for name in rest.columns if _plain(name) in _LABELS]
    if known and not called:
        called = [name for name in rest.columns if not is_nested(rest[name]) and {*rest[name]} <= {*known}]
    classes = [name for name in called or rest.columns if holds_classes(rest[name])]
    label, other = _choose(table, path, "label_column", args.label_column, called, classes)
    problems = [found for found in (problem, other) if found]
    if image is None:
        pixels = any(_plain(name).startswith("pixel") for name in table.columns)
        hint = "; pixels in a text file are not read: save them as image files" if pixels else ""
        raise NoListing(f"{path}: {'; '.join(problems)}{hint}")
    if other and not (called or problem) and (reason := one_hot(rest)):
        raise UserError(f"{path}: {reason}")
    if label is None and not problem:
        return image, None
    if problems:
        raise UserError(
            f"{path}: {'; '.join(problems)}", fix={"image_column": image} | ({"label_column": label} if label else {})
        )
    return image, label


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
    """The column to take, or to recommend, and in this case what is not clear.

    Args:
        table: the whole table.
        called: the columns with a usual name.
        fitting: the columns to recommend, by what they hold.
    """
    columns = list(table.columns)
    if given is not None:
        if given not in columns:
            shown = ", ".join(columns[:_LISTED])
            raise UserError(f"{key}: {given!r} is not a column of {path}: {shown}{nearest(given, columns)}")
        return given, None
    if len(called) == 1:
        return called[0], None
    if called and (same := _same_partition(table, called)):
        return same, None
    state, listed = ("ambiguous", called) if called else ("missing", columns)
    advice = f"set it to {' or '.join(map(repr, fitting[:5]))}" if fitting else _EXPECTED[key]
    shown = ", ".join(listed[:_LISTED]) + (", …" if len(listed) > _LISTED else "")
    return next(iter(fitting), None), f"{key} is {state}: {advice} (columns: {shown})"


_EXPECTED = {
    "image_column": "no column names images that exist",
    "label_column": "no column holds classes, that is, two or more values that repeat",
}


def _same_partition(table: pd.DataFrame, columns: list[str]) -> str | None:
    """Of columns that say the same in other words, such as an id and a name, the name."""
    if any(is_nested(table[name]) for name in columns):
        return None
    first = pd.factorize(table[columns[0]])[0]
    if not all((pd.factorize(table[name])[0] == first).all() for name in columns[1:]):
        return None
    return min(columns, key=lambda name: (_are_numbers(table[name]), _plain(name).endswith("id")))


def is_nested(values: pd.Series) -> bool:
    """Whether a column holds lists or objects."""
    return any(isinstance(value, (list, dict, np.ndarray)) for value in values)


def holds_classes(values: pd.Series) -> bool:
    """Whether a column can hold classes: at least two values that repeat, and no fractions."""
    if is_nested(values) or values.isna().any():
        return False
    return 2 <= values.nunique() <= len(values) / 2 and not are_fractions(values)


def are_fractions(values: pd.Series) -> bool:
    """Whether all values are numbers, and some of them are not whole."""
    return _are_numbers(values) and any(not float(value).is_integer() for value in values.unique())


def _are_numbers(values: pd.Series) -> bool:
    return all(value is not None and _NUMBER.fullmatch(value) for value in values.unique())


def one_hot(table: pd.DataFrame) -> str | None:
    """What is wrong with a table that has a column of zeros and ones for each class; None if it has none."""
    columns = [name for name in table.columns if not is_nested(table[name])]
    columns = [name for name in columns if set(table[name]) <= {"0", "1", "0.0", "1.0"}]
    if len(columns) < 2:
        return None
    listed = ", ".join(columns[:5]) + (", …" if len(columns) > 5 else "")
    if (table[columns].astype(float).sum(axis=1) == 1).all():
        return (
            f"its columns {listed} mark an image's class with a 1 (one-hot), and ftkit reads one column of class "
            f"names: add it, as with pandas: table['label'] = table[{columns[:5]}].idxmax(axis=1)"
        )
    return f"its columns {listed} may mark several classes of an image, and ftkit learns one class for each image"
