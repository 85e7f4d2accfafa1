"""Tables that list images: the file, the class and the split of each row."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.console import fact
from ftkit.errors import UserError, as_options, listed
from ftkit.files import natural_sorted

from .ledger import UNUSED_SPLIT, Ledger
from .locate import ImageFiles
from .split_names import choose_splits, is_split_like, looks_like_splits, split_column, split_of
from .table_columns import are_fractions, choose_image, choose_label, holds_classes, is_nested, is_usual, sample
from .tables import CSV_SUFFIXES, NoListing, NotUtf8, read_table

_SHOWN, _LONG, _COLUMNS = 60, 200, 20  # characters of a value and of a path, and columns, in a message
_FOLDER = "its folder"  # a column that is added to a table without labels
Rows = list[tuple[Path, str]]  # images with their classes


@dataclass(eq=False)
class Listing:
    """A table that lists images.

    Attributes:
        path: its file.
        table: its values: text, or None.
        files: the images that its rows may name.
        image, label: the columns of images and of labels, if it has one.
        split: the split that the table's own path names, or "".
        splits: the column of splits and the split of each of its values, or None.
        unclear: what is not clear about its columns of images and labels, with the settings that help.
        unsplit: what is not clear about its column of splits.
    """

    path: Path
    table: pd.DataFrame
    files: ImageFiles
    image: str
    label: str | None
    split: str
    splits: tuple[str, dict[Any, str]] | None
    unclear: UserError | None
    unsplit: UserError | None

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
        """Whether its rows, or at least half of a sample, name images that exist."""
        return self.files.names_images(sample(self.table)[self.image], split_of(self.split), self.path.parent)

    def names_any_of(self, files: Collection[Path]) -> bool:
        """Whether at least half of its rows name one of these files."""
        return 2 * sum(any(file in files for file in found) for found in self.found) >= len(self.found)

    @cached_property
    def found(self) -> list[list[Path]]:
        """The files that each row may name."""
        splits = self.own_splits().map({name: split_of(name) for name in self.own_splits().unique()})
        return [self._find(*row) for row in zip(self.table[self.image], splits, strict=True)]

    def _find(self, text: Any, split: str | None) -> list[Path]:
        return self.files.find(text, split, self.path.parent) if isinstance(text, str) else []

    def own_splits(self) -> pd.Series:
        """The name of each row's split, or ""."""
        if self.splits is None:
            return pd.Series(self.split, self.table.index)
        column, names = self.splits
        return self.table[column].map(names).fillna("")

    def labelled_by_folders(self) -> "Listing":
        """The listing with the name of each image's folder as its label.

        Raises:
            NoListing: these are no classes.
        """
        names = [files[0].parent.name if files else None for files in self.found]
        if len({*names} - {None}) < 2:
            raise NoListing(f"{self.path}: no column holds classes: {', '.join(self.table.columns)}")
        return replace(self, table=self.table.assign(**{_FOLDER: names}), label=_FOLDER, unclear=None)

    def describe(self) -> None:
        """Log what is read from which column, and what is not used."""
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
            UserError: some rows name no image, or one of several.
        """
        found = [[file for file in files if file in known] for files in self.found]
        if missing := [row for row, files in enumerate(found) if not files]:
            raise UserError(
                f"{self.path}: {len(missing)} of its {len(found)} lines name no image of the data, such as "
                f"{self.table[self.image][missing[0]]!r}: correct or remove them, or set --train_split . to split the "
                "images anew",
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
        """The error about rows that may each stand for several images."""
        root, (first, second) = self.files.root, self.found[rows[0]][:2]
        top = root / first.relative_to(root).parts[0]
        fix = {} if second.is_relative_to(top) or top == first else {"image_dir": str(top)}
        either = f", or set {as_options(fix)}" if fix else ""
        return UserError(
            f"{self.path}: {self.table[self.image][rows[0]]!r} may be {first} or {second} ({len(rows)} such rows): "
            f"write the paths of its images below {root}{either}",
            fix,
        )

    # --- as the data

    def rows(self) -> pd.DataFrame:
        """A row for each image: `image` and `label` (text), `split` (its own name, or ""), `row` and `listing`.

        Raises:
            UserError: a row has no split, and others have.
        """
        splits = self.own_splits()
        if self.splits and (without := splits.index[splits == ""]).size:
            raise UserError(
                f"{self.path}: row {without[0] + 1} has no {self.splits[0]!r} ({len(without)} such rows): add it, or "
                "set --split_column none to split the rows anew",
                fix={"split_column": "none"},
            )
        columns = {"image": self.table[self.image], "label": self.table[self.label], "split": splits}
        return pd.DataFrame(columns).assign(row=range(len(splits)), listing=self)

    def check_values(self, rows: pd.DataFrame) -> None:
        """Check that rows have an image and a label.

        Raises:
            UserError: one has not, or labels are fractions, lists or objects.
        """
        for name in ("image", "label"):
            for row, value in zip(rows["row"], rows[name], strict=True):
                if is_nested(pd.Series([value])):
                    shown = repr(value)[:_SHOWN] + ("…" if len(repr(value)) > _SHOWN else "")
                    raise UserError(f"{self.path}: row {row + 1} holds {shown}: expected a path or a label")
        bad = rows["image"].isna() | (rows["label"].fillna("").str.strip() == "")
        if bad.any():
            text = f"{self.path}: row {rows['row'][bad].iloc[0] + 1} has no {self.image!r} or no {self.label!r}"
            raise hidden_labels(f"{text} ({bad.sum()} such rows)", rows["split"][bad], rows["split"][~bad])
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
        """The file of each of its rows; None for a missing one, if `on_bad_image: skip` leaves those out.

        Raises:
            UserError: an image is missing, or may be one of several.
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


def read_listing(
    path: Path, root: Path, files: ImageFiles, args: DataArguments, classes: Collection[str] = ()
) -> Listing:
    """The table in a file at or below the folder `root`, with its columns chosen.

    Args:
        files: the images that it may name.
        classes: classes of other files of the data, by which a column of labels may be told.

    Raises:
        NoListing: the file is no table of images.
        UserError: it cannot be read.
    """
    problems: list[UserError] = []
    try:
        table = read_table(path)
    except NotUtf8 as error:  # to see whether it matters
        table, problems = read_table(path, "latin-1"), [error]
    if not any(map(is_usual, table.columns)):  # perhaps no header, but a first row
        found = [i for i, name in enumerate(table.columns) if len(files.find(name, None, path.parent)) == 1]
        if found and path.suffix.lower() in CSV_SUFFIXES:
            table = read_table(path, "latin-1" if problems else None, found[0])
    split = own_split([*path.relative_to(root).parent.parts, path.stem])
    image, unclear = choose_image(
        table, path, lambda values: files.names_images(values, split_of(split), path.parent), args
    )
    rest = table.drop(columns=image)
    values = {
        name: rest[name].dropna().unique().tolist()
        for name in rest
        if not is_nested(rest[name]) and rest[name].notna().any()
        if name == args.split_column or not (is_usual(name) or name == args.label_column)
    }
    splits = unsplit = None
    try:
        splits = split_column(values, args.split_column, path)
    except UserError as error:  # another table may have the column
        unsplit = error if args.split_column in (None, *values) else NoListing(str(error))
    of_splits = {name for name in values if looks_like_splits(name) or all(map(is_split_like, map(str, values[name])))}
    label = problem = None
    try:
        label, problem = choose_label(rest.drop(columns=list(of_splits)), path, args, classes)
    except NoListing as error:
        problems.append(error)
    if unclear or problem:
        text = "; ".join(found for found in (unclear, problem) if found)
        fix = {"image_column": image} | ({"label_column": label} if label else {})
        problems.append(UserError(f"{path}: {text}", fix if label or unclear else None))
    return Listing(
        path,
        table,
        files,
        image,
        None if problem else label,
        split,
        splits,
        together(problems) if problems else None,
        unsplit,
    )


def together(problems: list[UserError]) -> UserError:
    """One error of several, which recommends the settings of all."""
    fix = {key: value for problem in reversed(problems) for key, value in problem.fix.items()}
    kind = NoListing if all(isinstance(problem, NoListing) for problem in problems) else UserError
    return kind(". ".join(dict.fromkeys(map(str, problems))), fix)


def own_split(parts: Iterable[str]) -> str:
    """The last of the parts of a path that looks like a split, such as `train` of `("train", "metadata")`, or ""."""
    return next((part for part in reversed([*parts]) if is_split_like(part)), "")


def read_listings(
    listings: list[Listing],
    lists: list[Listing],
    source: Path,
    args: DataArguments,
    ledger: Ledger,
    need_train: bool = True,
) -> DatasetDict:
    """The images and labels of tables, by the names that they give their splits.

    A row's split is named by `lists`, which are tables without labels, by the table's column of splits, by the table's
    path, or else by the image's folder.

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
            rows["split"] = places if all(places) else source.stem
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
    return by_name(source, {split: files.get(split, []) for split in chosen}, columns)


def by_name(source: Path, files: dict[str, Rows], columns: tuple[str, str] = ("image", "label")) -> DatasetDict:
    """Splits of image paths, decoded when read, and labels: the names of all splits, in natural order.

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
    """The rows with the column `file`, checked."""
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
    return [
        own_split(path.relative_to(root).parent.parts) if path is not None and path.is_relative_to(root) else ""
        for path in files
    ]


def hidden_labels(problem: str, bad: pd.Series, good: pd.Series) -> UserError:
    """The error about rows without a label; if they are all of a split, it recommends to do without that split."""
    split = split_of(str(bad.iloc[0]))
    if split in ("validation", "test") and set(bad) == {bad.iloc[0]} and bad.iloc[0] not in set(good):
        return UserError(
            f"{problem}: set --{split}_split none to carve it out of train", fix={f"{split}_split": "none"}
        )
    return UserError(f"{problem}: label or remove them")
