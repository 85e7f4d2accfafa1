"""Rows of images and classes by split, read from tables, and as datasets."""

import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.errors import UserError
from ftkit.files import natural_sorted

from .ledger import UNUSED_SPLIT, Ledger
from .listings import Listing, own_split
from .split_names import choose_splits, split_of

Rows = list[tuple[Path, str]]  # images with their classes


def read_listings(
    listings: list[Listing],
    lists: list[Listing],
    source: Path,
    args: DataArguments,
    ledger: Ledger,
    need_train: bool = True,
) -> DatasetDict:
    """The images and labels of tables as `train`, `validation` and `test`.

    A row's split is named by `lists` (tables without labels), or else by the table's split column, the table's path,
    or the image's folder.

    Raises:
        UserError: a row cannot be used, or an image has two labels.
    """
    for listing in (*listings, *lists):
        listing.describe()
    rows = pd.concat([listing.rows() for listing in listings], ignore_index=True)
    if lists or (rows["split"] == "").all():
        rows = _located(rows, args)
        if lists:
            rows["split"] = _splits_of_lists(rows["file"], lists)
        else:
            places = _splits_of_folders(rows["file"], listings[0].files.root)
            rows["split"] = places if all(places) else listings[0].path.stem
        if unlisted := int((rows["split"] == "").sum()):
            ledger.leave_rows(source.name, unlisted, "in no list of a split")
            rows = rows[rows["split"] != ""]
    found = {str(name): group for name, group in rows.groupby("split")}
    chosen = choose_splits(found, args, source, need_train)
    for name, group in found.items():
        if not any(group is used for used in chosen.values()):
            ledger.leave_rows(name, len(group), UNUSED_SPLIT)
            ledger.read(file for row, listing in zip(group["row"], group["listing"], strict=True)
                        for file in listing.found[row])  # fmt: skip
    rows = pd.concat([group.assign(split=split) for split, group in chosen.items()])
    rows = rows if "file" in rows else _located(rows, args)
    missing = rows["file"].isna()
    repeated = _repeats(rows[~missing], source).reindex(rows.index, fill_value=False)
    for which, reason in ((missing, "their images do not exist"), (repeated, "they repeat an image and its label")):
        if which.any():
            ledger.leave_rows(source.name, int(which.sum()), reason)
    rows = rows[~(missing | repeated)]
    rows["label"] = _whole_numbers(rows["label"])
    files = {split: [*zip(group["file"], group["label"], strict=True)] for split, group in rows.groupby("split")}
    columns = listings[0].image, listings[0].label or ""
    return as_datasets({split: files.get(split, []) for split in chosen}, columns)


def as_datasets(files: dict[str, Rows], columns: tuple[str, str] = ("image", "label")) -> DatasetDict:
    """Rows as datasets of images, decoded when read, and labels, numbered in the natural order of all splits' names.

    A class missing from one split does not shift the labels.
    """
    names = natural_sorted({label for rows in files.values() for _, label in rows})
    features = Features({columns[0]: Image(), columns[1]: ClassLabel(names=names)})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {columns[0]: [str(path) for path, _ in rows], columns[1]: [label for _, label in rows]},
                features=features,
            )
            for split, rows in files.items()
        }
    )


def _located(rows: pd.DataFrame, args: DataArguments) -> pd.DataFrame:
    """The rows, checked, with each image's path in the column `file`."""
    parts = []
    for listing, part in rows.groupby("listing", sort=False):
        listing.check_values(part)
        parts.append(part.assign(file=pd.Series(listing.located(part, args), part.index, dtype=object)))
    return pd.concat(parts)


def splits_of_lists(files: Collection[Path], lists: list[Listing]) -> dict[str, list[Path]]:
    """The images of each split that the tables `lists` name; train is the rest if no table names it.

    Raises:
        UserError: a table names images that are not among `files`.
    """
    found: dict[str, list[Path]] = {}
    known = set(files)
    for listing in lists:
        for name, images in listing.by_split(known).items():
            found[name] = list(dict.fromkeys([*found.get(name, []), *images]))
    if all(split_of(name) != "train" for name in found):
        named = {file for images in found.values() for file in images}
        found["train"] = [file for file in files if file not in named]
    return found


def _splits_of_lists(files: pd.Series, lists: list[Listing]) -> list[str]:
    """The split of each image by the tables that list them, or ""."""
    found = splits_of_lists([file for file in files if file is not None], lists)
    of = {file: name for name, images in found.items() for file in images}
    return [of.get(file, "") for file in files]


def _whole_numbers(labels: pd.Series) -> pd.Series:
    """Labels with `1` for `1.0` if all are whole numbers: pandas adds the `.0` in a column with gaps."""
    distinct = labels.unique()
    if all(re.fullmatch(r"-?\d+(\.0+)?", text) for text in distinct):
        return labels.map({text: text.partition(".")[0] for text in distinct})
    return labels


def _repeats(rows: pd.DataFrame, source: Path) -> pd.Series:
    """Whether each row repeats an image of its split; an error if an image has two labels."""
    several = rows.groupby("file")["label"].transform("nunique") > 1
    if several.any():
        first = rows[rows["file"] == rows["file"][several].iloc[0]]
        labels = " and ".join(map(repr, first["label"].unique()[:3]))
        raise UserError(
            f"{source}: {first['file'].iloc[0]} is listed as {labels} ({rows['file'][several].nunique()} such "
            "images): ftkit learns one class for each image: keep one row of each"
        )
    return rows.duplicated(["file", "split"])


def _splits_of_folders(files: pd.Series, root: Path) -> list[str]:
    """The split that each image's folder below the root names, or ""."""
    return [
        own_split(path.relative_to(root).parent.parts) if path is not None and path.is_relative_to(root) else ""
        for path in files
    ]
