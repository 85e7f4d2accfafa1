"""Tables that list images: the file, the class and the split of each row."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ftkit.config import DataArguments
from ftkit.console import fact
from ftkit.errors import UserError, as_options, listed

from .locate import ImageFiles
from .split_names import is_none, is_split_like, looks_like_splits, split_column, split_of, splits_named
from .table_columns import are_fractions, choose_image, choose_label, holds_classes, is_nested, is_usual, sample
from .tables import CSV_SUFFIXES, NoListing, NotUtf8, read_table
from .unusable import Unusable

_SHOWN, _LONG, _COLUMNS = 60, 200, 20  # characters of a value and of a path, and columns, in a message
_FOLDER = "its folder"  # a column that is added to a table without labels


@dataclass(eq=False)
class Listing:
    """A table that lists images.

    Attributes:
        path: its file.
        table: its values: text, or None.
        files: the images that its rows may name.
        image, label: the columns of images and of labels, if it has one.
        split: the split that the table's own path names, or "".
        splits: the split column and the split of each of its values, or None.
        unclear: what is unclear about its image and label columns, with the settings that help.
        unclear_splits: what is unclear about its split column.
    """

    path: Path
    table: pd.DataFrame
    files: ImageFiles
    image: str
    label: str | None
    split: str
    splits: tuple[str, dict[Any, str]] | None
    unclear: UserError | None
    unclear_splits: UserError | None

    @property
    def name(self) -> str:
        """Its path below the folder of the images, without a suffix."""
        root = self.files.root
        path = self.path.relative_to(root) if self.path.is_relative_to(root) else Path(self.path.name)
        return path.with_suffix("").as_posix()

    @property
    def gives_splits(self) -> bool:
        """Whether it says which images are of which split: by a column, or all of them by its name."""
        return self.splits is not None or split_of(self.path.stem) is not None

    @cached_property
    def names_images(self) -> bool:
        """Whether at least half of a sample of its rows name images that exist."""
        return self.files.names_images(sample(self.table)[self.image], split_of(self.split), self.path.parent)

    def names_any_of(self, files: Collection[Path]) -> bool:
        """Whether at least half of its rows name one of these files."""
        return 2 * sum(any(file in files for file in found) for found in self.found) >= len(self.found)

    @cached_property
    def found(self) -> list[list[Path]]:
        """The files that each row may name."""
        splits = self.own_splits().map({name: split_of(name) for name in self.own_splits().unique()})
        find = cache(lambda text, split: self.files.find(text, split, self.path.parent))
        found = [
            find(text, split) if isinstance(text, str) else []
            for text, split in zip(self.table[self.image], splits, strict=True)
        ]
        if all(len(files) < 2 for files in found):
            return found
        rows = self.table.drop(columns=self.image).itertuples(index=False)
        return [_named_beside(files, row) for files, row in zip(found, rows, strict=True)]

    def own_splits(self) -> pd.Series:
        """The name of each row's split, or ""."""
        if self.splits is None:
            return pd.Series(self.split, self.table.index)
        column, names = self.splits
        return self.table[column].map(names).fillna("")

    def labelled_by_folders(self) -> "Listing":
        """This listing, labelled by the folder of each image.

        Raises:
            NoListing: the images lie in fewer than two folders.
        """
        names = [files[0].parent.name if files else None for files in self.found]
        if len({*names} - {None}) < 2:
            raise NoListing(f"{self.path}: no column holds classes: {', '.join(self.table.columns)}")
        return replace(self, table=self.table.assign(**{_FOLDER: names}), label=_FOLDER, unclear=None)

    def describe(self) -> None:
        """Log which column has what, which columns are not used, and how many images have other names."""
        used = {"images": self.image} | ({"labels": self.label} if self.label else {})
        used |= {"splits": self.splits[0]} if self.splits else {}
        fact("table", f"{self.path}: " + ", ".join(f"{what} from {name!r}" for what, name in used.items()))
        if unused := [name for name in self.table.columns if name not in used.values()]:
            fact("not used", f"of its columns: {listed(unused, _COLUMNS)}")
        other = [
            (text, files[0].name)
            for text, files in zip(self.table[self.image], self.found, strict=True)
            if len(files) == 1 and files[0].stem.casefold() not in text.casefold()
        ]
        if other:
            fact("images", f"{other[0][0]!r} stands for {other[0][1]} ({len(other)} such rows)")

    def by_split(self, known: Collection[Path]) -> dict[str, list[Path]]:
        """The images of each split that it lists, by its column of splits or by the table's own name.

        Args:
            known: the images of the data.

        Raises:
            UserError: a row names no image, or several.
        """
        found = [[file for file in files if file in known] for files in self.found]
        if missing := [row for row, files in enumerate(found) if not files]:
            raise UserError(
                f"{self.path}: {len(missing)} of its {len(found)} lines name no image of the data, such as "
                f"{self.table[self.image][missing[0]]!r}: correct or remove them, or set --train_split . to split the "
                "images again",
                fix={"train_split": "."},
            )
        if several := [row for row, files in enumerate(found) if len(files) > 1]:
            raise self.ambiguous(several)
        names = self.own_splits() if self.splits else [self.name] * len(found)
        of: dict[str, list[Path]] = {}
        for name, files in zip(names, found, strict=True):
            of.setdefault(name or "", []).append(files[0])
        of.pop("", None)
        return of

    def ambiguous(self, rows: list[int]) -> UserError:
        """The error about rows that each match several images."""
        root, (first, second) = self.files.root, self.found[rows[0]][:2]
        top = root / first.relative_to(root).parts[0]
        fix = {} if second.is_relative_to(top) or top == first else {"image_dir": str(top)}
        either = f", or set {as_options(fix)}" if fix else ""
        return UserError(
            f"{self.path}: {self.table[self.image][rows[0]]!r} may be {first} or {second} ({len(rows)} such rows): "
            f"write each image's path below {root}{either}",
            fix,
        )

    # --- as the data

    def rows(self) -> pd.DataFrame:
        """A row for each image: `image` and `label` (text), `split` (its own name, or ""), `row` and `listing`.

        Raises:
            UserError: some rows have a split, others none.
        """
        splits = self.own_splits()
        if self.splits and (without := splits.index[splits == ""]).size:
            raise UserError(
                f"{self.path}: row {without[0] + 1} has no {self.splits[0]!r} ({len(without)} such rows): add it, or "
                "set --split_column none to ignore the column",
                fix={"split_column": "none"},
            )
        columns = {"image": self.table[self.image], "label": self.table[self.label], "split": splits}
        return pd.DataFrame(columns).assign(row=range(len(splits)), listing=self)

    def check_values(self, rows: pd.DataFrame) -> None:
        """Check that rows have an image and a label.

        Raises:
            UserError: a row lacks one, or labels are fractions, lists or objects.
        """
        for name in ("image", "label"):
            for row, value in zip(rows["row"], rows[name], strict=True):
                if is_nested(pd.Series([value])):
                    shown = repr(value)[:_SHOWN] + ("…" if len(repr(value)) > _SHOWN else "")
                    raise UserError(f"{self.path}: row {row + 1} holds {shown}: expected a path or a label")
        bad = rows["image"].isna() | (rows["label"].fillna("").str.strip() == "")
        if bad.any():
            text = f"{self.path}: row {rows['row'][bad].iloc[0] + 1} has no {self.image!r} or no {self.label!r}"
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

    def located(self, rows: pd.DataFrame, args: DataArguments) -> list[Path | None]:
        """The file of each of these rows; None for a missing one under `on_bad_image: skip`.

        Raises:
            UserError: an image is missing, or a row matches several.
        """
        found = [self.found[row] for row in rows["row"]]
        missing = [text for text, files in zip(rows["image"], found, strict=True) if not files]
        if several := [row for row, files in zip(rows["row"], found, strict=True) if len(files) > 1]:
            raise self.ambiguous(several)
        if missing and (args.on_bad_image == "error" or len(missing) == len(found)):
            few, example = len(missing) < len(found) / 2, str(self.files.root / missing[0])[:_LONG]
            raise UserError(
                f"{self.path}: {len(missing)} of its images do not exist, such as {example}: paths are relative to "
                "the folder of the data; set --image_dir to the folder of the images if it is another"
                f"{', or --on_bad_image skip to leave these rows out' if few else ''}",
                fix={"on_bad_image": "skip"} if few else None,
            )
        return [files[0] if files else None for files in found]


def _named_beside(files: list[Path], row: tuple[Any, ...]) -> list[Path]:
    """Those of several files whose folder another value of the row names; all if none of them is."""
    if len(files) < 2:
        return files
    values = {value for value in row if isinstance(value, str)}
    return [file for file in files if not values.isdisjoint(file.parent.parts)] or files


def read_listing(
    path: Path, root: Path, files: ImageFiles, args: DataArguments, classes: Collection[str] = ()
) -> Listing:
    """The table in a file at or below the folder `root`, with its columns chosen.

    Args:
        files: the images that it may name.
        classes: classes known from elsewhere in the data; a column of only these is the label column.

    Raises:
        NoListing: the file is no table of images.
        UserError: it cannot be read.
    """
    problem: UserError | None = None
    try:
        table = read_table(path)
    except NotUtf8 as error:  # raised only if the table is used
        table, problem = read_table(path, "latin-1"), error
    if not any(map(is_usual, table.columns)):  # perhaps no header, but a first row
        found = [i for i, name in enumerate(table.columns) if len(files.find(name, None, path.parent)) == 1]
        if found and path.suffix.lower() in CSV_SUFFIXES:
            table = read_table(path, "latin-1" if problem else None, found[0])
    if "label" in table and re.search("split|partition", path.stem) and splits_named(path.stem):  # as of CelebA
        table = table.rename(columns={"label": "split"})
    split = own_split([*path.relative_to(root).parent.parts, path.stem])
    image, of_images = choose_image(
        table, path, lambda values: files.names_images(values, split_of(split), path.parent), args
    )
    rest = table.drop(columns=image)
    values = {
        name: rest[name].dropna().unique().tolist()
        for name in rest
        if not is_nested(rest[name]) and rest[name].notna().any()
        if name == args.split_column or not (is_usual(name) or name == args.label_column)
    }
    splits = unclear_splits = None
    try:
        if is_none(args.split_column) or args.split_column in (None, *values):  # or another table has the column
            splits = split_column(values, args.split_column, path)
    except UserError as error:
        unclear_splits = error
    of_splits = {name for name in values if looks_like_splits(name) or all(map(is_split_like, map(str, values[name])))}
    label, of_labels = choose_label(rest.drop(columns=list(of_splits)), path, args, classes)
    if (of_images or of_labels) and not problem:
        fix = {"image_column": image} | ({"label_column": label} if label else {})
        text = "; ".join(text for text in (of_images, of_labels) if text)
        problem = UserError(f"{path}: {text}", fix if label or of_images else None)
    return Listing(path, table, files, image, None if of_labels else label, split, splits, problem, unclear_splits)


def own_split(parts: Iterable[str]) -> str:
    """The last of the parts of a path that looks like a split, such as `train` of `("train", "metadata")`, or ""."""
    return next((part for part in reversed([*parts]) if is_split_like(part)), "")


def hidden_labels(problem: str, bad: pd.Series) -> UserError:
    """The error about rows without a label; `bad` has the split of each."""
    advice, splits = "label or remove them", [split_of(name) for name in bad.unique()]
    known = [split for split in splits if split is not None]
    return UserError(f"{problem}: {advice}") if len(known) < len(splits) else Unusable(problem, known, advice)
