"""Tables beside class folders: they may assign the images to splits, and must not contradict the folders."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ftkit.config import DataArguments
from ftkit.errors import UserError, as_options

from .ledger import Folder, Ledger
from .listings import Listing
from .rows import Rows
from .split_folders import HERE
from .split_names import looks_like_splits
from .table_columns import holds_classes, is_nested
from .tables import NotUtf8


@dataclass
class Beside:
    """The files beside class folders.

    Attributes:
        tables: those that list images.
        unread: those that list no images, or assign none to splits.
    """

    tables: list[Listing]
    unread: Collection[Path] = ()

    @property
    def lists(self) -> list[Listing]:
        """The tables that assign images to splits."""
        return [table for table in self.tables if table.gives_splits]

    def check(self, chosen: dict[str, Rows], root: Folder, args: DataArguments, ledger: Ledger) -> None:
        """Refuse tables that contradict the class folders, and record those that add nothing.

        Args:
            chosen: the images in class folders with their classes, by split; the only key is "" if no folder is a
                split.
            root: the folder of the class folders.

        Raises:
            UserError: a table gives the images other classes, or it is unclear which of its columns holds splits.
        """
        classes = {path: label for rows in chosen.values() for path, label in rows}
        for table in self.tables:
            agrees = _agrees(table, classes, root.path, args.label_column != HERE)
            if table.unclear_splits and "" in chosen:
                raise table.unclear_splits
            if table not in self.lists or "" not in chosen:
                ledger.leave_file(
                    table.path, "repeats what the folders say" if agrees else "says nothing about classes or splits"
                )


def _agrees(table: Listing, classes: dict[Path, str], root: Path, strict: bool) -> bool:
    """Whether a column of a table corresponds to the class folders one to one.

    Raises:
        UserError: another column holds classes, and `strict` is true.
    """
    found = [[file for file in files if file in classes] for files in table.found]
    clear = [row for row, files in enumerate(found) if len(files) == 1]
    folders = pd.Series([classes[found[row][0]] for row in clear], dtype=object)
    rows = table.table.iloc[clear].drop(columns=table.image)
    if clear and any(_corresponds(rows[name], folders) for name in rows):
        return True
    several = [row for row, files in enumerate(found) if len(files) > 1]
    if not (clear or several) or set(table.table[table.image]) <= {*classes.values()}:  # a table of the classes
        return False
    recommended = table.unclear.fix.get("label_column") if table.unclear else None
    names = [recommended, *rows] if recommended in rows else rows
    label = table.label or next((name for name in names if _may_be_classes(table.table[name], name)), None)
    if several and ((label and strict) or table.gives_splits):
        raise table.ambiguous(several)
    if label is None or not strict:
        return False
    if isinstance(table.unclear, NotUtf8):
        raise table.unclear
    fix = {"image_column": table.image, "label_column": label}
    raise UserError(
        f"data_dir: {root} holds class folders, and {table.path} lists their images with other labels, in the column "
        f"{label!r}: to read the table, set {as_options(fix)}; to go by the folders, set --label_column {HERE}",
        fix=fix,
    )


def _corresponds(values: pd.Series, folders: pd.Series) -> bool:
    """Whether values and folders correspond one to one."""
    if is_nested(values) or values.isna().any():
        return False
    return bool((pd.factorize(values)[0] == pd.factorize(folders)[0]).all())


def _may_be_classes(values: pd.Series, name: str) -> bool:
    """Whether a column without a usual name may hold classes: text, but neither numbers nor splits."""
    if looks_like_splits(name) or not holds_classes(values):
        return False
    return not values.str.fullmatch(r"[-+.\d]+").all()
