"""Tables of paths and labels as splits of images: the file, the class and the split of each row."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import DatasetDict

from ftkit.config import DataArguments
from ftkit.console import fact
from ftkit.errors import UserError, as_options

from .folders import by_name
from .ledger import UNUSED_SPLIT, Folder, Ledger
from .locate import ImageFiles
from .split_names import choose_splits, is_none, is_split_like, split_column, split_of
from .table_columns import are_fractions, choose_columns, holds_classes, is_nested, is_usual, sample
from .tables import CSV_SUFFIXES, NoListing, read_table
from .unusable import Unusable

_SHOWN, _LONG = 60, 200  # characters of a value and of a path in a message
_FOLDER = "its folder"  # a column that is added to a table without labels


@dataclass
class Listing:
    """A table that lists images.

    Attributes:
        path: its file.
        table: its values: text, or None.
        files: the images that its rows may name.
        image, label: the columns of images and labels; without labels, they are the names of the images' folders.
        split: the split that the table's own path names, or "".
        splits: the column of splits and the split of each of its values, or None.
    """

    path: Path
    table: pd.DataFrame
    files: ImageFiles
    image: str
    label: str
    split: str
    splits: tuple[str, dict[Any, str]] | None

    @property
    def lists_a_split(self) -> bool:
        """Whether it lists images without labels, under the name of a split."""
        return self.label == _FOLDER and split_of(self.path.stem) is not None

    @cached_property
    def names_images(self) -> bool:
        """Whether its rows, or at least half of a sample, name images that exist."""
        return self.files.names_images(sample(self.table)[self.image], split_of(self.split))

    def check_against_folders(self, folder: Folder) -> None:
        """Check that the table says of its images, which lie in class folders, what the folders say.

        Raises:
            UserError: it has splits of its own, or other labels for at least half of the images.
        """
        root = folder.path
        found = [self.files.find(text, None) if isinstance(text, str) else [] for text in self.table[self.image]]
        rows = [row for row, files in enumerate(found) if len(files) == 1 and files[0].is_relative_to(root)]
        folders = [found[row][0].relative_to(root).parent.parts for row in rows]
        names = self._own_splits().iloc[rows]
        if any(
            split_of(name) not in (None, split_of("/".join(parts))) for name, parts in zip(names, folders, strict=True)
        ):
            what = "splits of its own"
        elif 2 * len(rows) >= sum(len(inner.images) for inner in folder.below()) and not any(
            all(
                isinstance(value, str) and value in parts
                for value, parts in zip(self.table[column].iloc[rows], folders, strict=True)
            )
            for column in self.table.columns
        ):
            what = "other labels"
        else:
            return
        fix = {"image_column": self.image} | ({} if self.label == _FOLDER else {"label_column": self.label})
        raise UserError(
            f"data_dir: {root} holds class folders, and {self.path.relative_to(root)} lists their images with {what}: "
            f"to read the table, set {as_options(fix)}; to read the "
            "folders, move it elsewhere",
            fix=fix,
        )

    def _own_splits(self) -> pd.Series:
        """The name of each row's split, or ""."""
        if self.splits is None:
            return pd.Series(self.split, self.table.index)
        column, names = self.splits
        return self.table[column].map(names).fillna("")

    def describe(self) -> None:
        """Log what is read from which column, and what is not used."""
        used = {"images": self.image, "labels": self.label} | ({"splits": self.splits[0]} if self.splits else {})
        unused = [name for name in self.table.columns if name not in used.values()]
        fact("table", f"{self.path}: " + ", ".join(f"{what} from {name!r}" for what, name in used.items()))
        if unused:
            fact("not used", f"of its columns: {', '.join(unused[:20])}{', …' if len(unused) > 20 else ''}")

    def rows(self, args: DataArguments) -> pd.DataFrame:
        """The rows of the splits that are wanted: `file` (path), `label` (text) and `split` (its own name, or "").

        The file is None for a missing image, if `on_bad_image: skip` leaves those out.

        Raises:
            UserError: a row has no image, label or split, or its image is missing or not clear.
        """
        rows = pd.DataFrame(
            {"file": self.table[self.image], "label": self.table[self.label], "split": self._own_splits()}
        )
        if self.splits and (without := rows.index[rows["split"] == ""]).size:
            raise UserError(
                f"{self.path}: row {without[0] + 1} has no {self.splits[0]!r} ({len(without)} such rows): add it, or "
                "set --split_column none to ignore the column",
                fix={"split_column": "none"},
            )
        given = {args.train_split, args.validation_split, args.test_split}
        keys = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
        rows = rows[[name in given or not is_none(keys.get(split_of(name) or "")) for name in rows["split"]]]
        self._check_values(rows)
        return rows.assign(file=self._located(rows, args))

    def _check_values(self, rows: pd.DataFrame) -> None:
        for name in ("file", "label"):
            if is_nested(rows[name]):
                row, value = next((i, v) for i, v in rows[name].items() if is_nested(pd.Series([v])))
                shown = repr(value)[:_SHOWN] + ("…" if len(repr(value)) > _SHOWN else "")
                raise UserError(f"{self.path}: row {row + 1} holds {shown}: expected a path or a label")
        bad = (rows["file"].isna() | rows["label"].isna() | (rows["label"].fillna("").str.strip() == "")).to_numpy()
        if bad.any():
            text = f"{self.path}: row {rows.index[bad][0] + 1} has no {self.image!r} or no {self.label!r}"
            raise hidden_labels(f"{text} ({bad.sum()} such rows)", rows["split"][bad])
        if len(rows) and are_fractions(rows["label"]):
            example = next(text for text in rows["label"] if not float(text).is_integer())
            fitting = [name for name in self.table if name != self.image and holds_classes(self.table[name])]
            advice = f"set label_column to {fitting[0]}, or " if fitting else ""
            raise UserError(
                f"{self.path}: label_column: {self.label!r} holds numbers such as {example}, and ftkit learns "
                f"classes, not numbers (regression): {advice}write classes as text",
                fix={"label_column": fitting[0]} if fitting else None,
            )

    def _located(self, rows: pd.DataFrame, args: DataArguments) -> list[Path | None]:
        """The file of each row; None for a missing one, if `on_bad_image: skip` leaves those out."""
        places = {name: split_of(name) for name in rows["split"].unique()}
        found = [self.files.find(*row) for row in zip(rows["file"], rows["split"].map(places), strict=True)]
        missing = [text for text, files in zip(rows["file"], found, strict=True) if not files]
        unclear = [(text, files) for text, files in zip(rows["file"], found, strict=True) if len(files) > 1]
        if unclear:
            text, files = unclear[0]
            raise UserError(
                f"{self.path}: {text!r} may be {files[0]} or {files[1]} ({len(unclear)} such rows): write the paths "
                f"of its images below {self.files.root}"
            )
        if missing and (args.on_bad_image == "error" or len(missing) == len(found)):
            few, example = len(missing) < len(found) / 2, str(self.files.root / missing[0])[:_LONG]
            raise UserError(
                f"{self.path}: {len(missing)} of its images do not exist, such as {example}: paths are relative to "
                "the folder of the file that lists them; set --image_dir to the folder of the images if it is another"
                f"{', or --on_bad_image skip to leave these rows out' if few else ''}",
                fix={"on_bad_image": "skip"} if few else None,
            )
        return [files[0] if files else None for files in found]


def read_listing(
    path: Path, root: Path, files: ImageFiles, args: DataArguments, classes: Collection[str] = ()
) -> Listing:
    """The table in a file at or below the folder `root`, with its columns chosen.

    Args:
        files: the images that it may name.
        classes: classes of other files of the data, by which a column of labels may be told.

    Raises:
        NoListing: the file is no table of images and labels.
        UserError: its columns are not clear.
    """
    table = read_table(path)
    if not any(map(is_usual, table.columns)):  # perhaps no header, but a first row
        found = [i for i, name in enumerate(table.columns) if len(files.find(name, None)) == 1]
        table = read_table(path, found[0]) if found and path.suffix.lower() in CSV_SUFFIXES else table
    split = own_split([*path.relative_to(root).parent.parts, path.stem])
    image, label = choose_columns(
        table, path, lambda values: files.names_images(values, split_of(split)), args, classes
    )
    if label is None:
        places = [files.find(text, split_of(split)) if isinstance(text, str) else [] for text in table[image]]
        table = table.assign(**{_FOLDER: [there[0].parent.name if there else None for there in places]})
        label = _FOLDER
        if table[_FOLDER].nunique() < 2:
            raise NoListing(f"{path}: no column holds classes: {', '.join(table.columns.drop(_FOLDER))}")
    others = {
        name: table[name].dropna().unique().tolist()
        for name in table.columns
        if name not in (image, label) and not is_nested(table[name]) and table[name].notna().any()
    }
    return Listing(path, table, files, image, label, split, split_column(others, args.split_column, path))


def own_split(parts: Iterable[str]) -> str:
    """The last of the parts of a path that looks like a split, such as `train` of `("train", "metadata")`, or ""."""
    return next((part for part in reversed([*parts]) if is_split_like(part)), "")


def read_listings(
    listings: list[Listing], source: Path, args: DataArguments, ledger: Ledger, need_train: bool = True
) -> DatasetDict:
    """The images and labels of tables, by the names that they give their splits.

    A row's split is named by the table's column of splits, else by the table's path, else by the image's folder.

    Raises:
        UserError: a row cannot be used, or an image has two labels.
    """
    for listing in listings:
        listing.describe()
    rows = pd.concat([listing.rows(args) for listing in listings], ignore_index=True)
    missing = rows["file"].isna()
    repeated = _repeats(rows[~missing], source).reindex(rows.index, fill_value=False)
    for which, reason in ((missing, "their images do not exist"), (repeated, "they repeat an image and its label")):
        if which.any():
            ledger.leave_rows(source.name, int(which.sum()), reason)
    rows = rows[~(missing | repeated)]
    rows["label"] = _whole_numbers(rows["label"])
    if (rows["split"] == "").all():
        places = _splits_of_folders(rows["file"], listings[0].files.root)
        rows["split"] = places if all(places) else source.stem
    found = {str(name): [*zip(group["file"], group["label"], strict=True)] for name, group in rows.groupby("split")}
    chosen = choose_splits(found, args, source, need_train)
    for name, of_split in found.items():
        if not any(of_split is used for used in chosen.values()):
            ledger.leave_rows(name, len(of_split), UNUSED_SPLIT)
            ledger.read(path for path, _ in of_split)
    return by_name(source, chosen, (listings[0].image, listings[0].label))


def _whole_numbers(labels: pd.Series) -> pd.Series:
    """`1` for `1.0`, where all labels are whole numbers: pandas writes integers so in a column with gaps."""
    distinct = labels.unique()
    if all(re.fullmatch(r"-?\d+(\.0+)?", text) for text in distinct):
        return labels.map({text: text.partition(".")[0] for text in distinct})
    return labels


def _repeats(rows: pd.DataFrame, source: Path) -> pd.Series:
    """Whether a row repeats the image of another of its split; an error if their labels differ."""
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
    return [own_split(path.relative_to(root).parent.parts) if path.is_relative_to(root) else "" for path in files]


def hidden_labels(problem: str, bad: pd.Series) -> UserError:
    """The error about rows without a label, of these splits by their own names."""
    advice, splits = "label or remove them", [split_of(name) for name in bad.unique()]
    known = [split for split in splits if split is not None]
    return UserError(f"{problem}: {advice}") if len(known) < len(splits) else Unusable(problem, known, advice)
