"""Refuses datasets whose rows name files outside of the dataset's own folders."""

import os.path
from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from ftkit.errors import UserError


def check_paths(splits: DatasetDict, folders: list[Path]) -> None:
    """Check that every image file that a row names is below `folders`.

    Paths are compared as written, with `..` resolved; a link inside a folder may lead anywhere, because someone put it
    there.

    Args:
        splits: splits with a column `image`.
        folders: the folders of the dataset's files.

    Raises:
        UserError: a row names a file elsewhere.
    """
    roots = [os.path.abspath(folder) for folder in folders]
    for split, dataset in splits.items():
        for row, path in enumerate(named_files(dataset)):
            if path is not None and not is_below(path, roots):
                raise UserError(
                    f"{split}, row {row}: its image is the file {path}, outside of {' or '.join(roots)}; a dataset "
                    "may name only its own files. If you trust it, list the paths in a CSV file with the columns "
                    "image, label and split, and pass that file as --data_dir"
                )


def named_files(dataset: Dataset, column: str = "image") -> list[str | None]:
    """The file that each row names instead of image bytes, or None; an empty list if no row names one."""
    files = dataset.select_columns(column).with_format("arrow")[:][column]
    to_open = pc.if_else(pc.is_null(pc.struct_field(files, "bytes")), pc.struct_field(files, "path"), None)
    return to_open.to_pylist() if to_open.null_count < len(to_open) else []


def is_below(path: str | None, folders: Iterable[str]) -> bool:
    """Whether a path, as written, lies below one of some folders."""
    return path is not None and any(
        os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), "")) for folder in folders
    )
