"""The tables of a folder: which list images, and which of these are the data."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ftkit.config import DataArguments
from ftkit.config.arguments.data import NO_SPLIT
from ftkit.errors import UserError, as_options, listed, nearest

from .ledger import Folder
from .listings import Listing, own_split, read_listing
from .locate import ImageFiles
from .pictures import holds_pictures
from .split_names import is_none, is_split_like, split_of
from .suffixes import is_image_name
from .table_columns import sample
from .tables import TEXT_SUFFIXES, NoListing
from .unusable import Unusable

_LINE = 1000  # characters
_MOST = 20  # files of a kind in a folder; more are annotations, one for each image
_SHEETS = (".xls", ".xlsx", ".ods", ".numbers")


def find_tables(root: Folder, args: DataArguments) -> tuple[list[Listing], dict[Path, UserError]]:
    """The tables that list images, and why other files do not; all with labels if no table's images exist."""
    splits = [folder for name, folder in root.folders.items() if is_split_like(name)]
    classes = {name for split in splits if len(split.with_images) > 1 for name in split.with_images}
    images = ImageFiles(Path(args.image_dir)) if args.image_dir else ImageFiles(root.path, root)
    listings: list[Listing] = []
    others: dict[Path, UserError] = {}
    for file in _candidates(root):
        try:
            if file.suffix.lower() in _SHEETS:
                raise NoListing(f"{file}: a spreadsheet is not read: save it as CSV")
            if "submission" in file.stem.lower():
                raise NoListing(f"{file}: a submission holds no labels")
            listings.append(read_listing(file, root.path, images, args, classes))
        except UserError as error:
            others[file] = error
    present = [listing for listing in listings if listing.names_images]
    missing = [listing for listing in listings if listing not in present and (present or listing.label is None)]
    others |= {listing.path: NoListing("its images do not exist") for listing in missing}
    return present or [listing for listing in listings if listing.label is not None], others


def _candidates(root: Folder) -> Iterator[Path]:
    """The files that may be tables; not annotation files, one per image."""
    for folder in root.below():
        stems = {image.stem for image in folder.images}
        kinds = Counter(Path(name).suffix.lower() for name in folder.files)
        for name in sorted(folder.files):
            file = folder.path / name
            suffix = file.suffix.lower()
            if file.stem in stems or (kinds[suffix] > _MOST and not is_split_like(file.stem)):
                continue
            if suffix in _SHEETS or _is_table(file, suffix):
                yield file


def _is_table(file: Path, suffix: str) -> bool:
    if suffix == ".txt" and not is_split_like(file.stem):  # most texts are no tables
        with file.open(encoding="utf-8", errors="replace") as lines:
            return any(map(is_image_name, re.split(r"[\s,;|]", lines.readline(_LINE))))
    return suffix in TEXT_SUFFIXES or (suffix == ".parquet" and not holds_pictures(file))


def choose_tables(
    tables: list[Listing], others: dict[Path, UserError], path: Path, args: DataArguments
) -> tuple[list[Listing], list[Listing]]:
    """The tables to read: those with labels that name a split, or else the only one; and those that only name splits.

    Raises:
        UserError: several tables could be the data; the columns of one are unclear; or a split's table has no labels.
    """
    _check_columns(tables, args)
    labels = {table.label for table in tables}
    tables = [_with_label(table, labels) for table in tables]
    labelled = [table for table in tables if table.label is not None]
    problems = [problem for table in tables for problem in (table.unclear, table.unclear_splits) if problem]
    if not (labelled or problems):
        labelled = [table.labelled_by_folders() for table in tables]
    chosen = [table for table in labelled if table.split] or labelled
    if chosen and not chosen[0].split and len({table.path.name for table in chosen}) > 1:
        names = listed(str(table.path.relative_to(path)) for table in chosen)
        fix = {"data_dir": str(chosen[0].path)}
        raise UserError(
            f"data_dir: {path} holds several tables of images, {names}: name the one to read, such as "
            f"{as_options(fix)}",
            fix=fix,
        )
    known = {file for table in tables if table.label or table.unclear for files in table.found for file in files}
    rest = [table for table in tables if table.label is None and table.unclear is None]
    lists = [table for table in rest if table.gives_splits and table.names_any_of(known)]
    splits = {split_of(table.split) for table in chosen}
    without: dict[Path, UserError] = {
        table.path: NoListing(f"{table.path}: no column holds classes") for table in rest if table not in lists
    }
    unlabelled = _unlabelled(others | without, splits, path, args)
    if args.need_train and "train" not in splits:
        problems += unlabelled.pop("train", [])
    lacking = ". ".join(str(error) for errors in unlabelled.values() for error in errors)
    if hopeless := [problem for problem in problems if not problem.fix]:
        raise UserError(". ".join(dict.fromkeys(map(str, hopeless))))
    if problems:
        fix = {key: value for problem in reversed(problems) for key, value in problem.fix.items()}
        texts = [*map(str, problems)]
        if lacking and args.need_train:
            carved = {f"{split}_split": NO_SPLIT for split in unlabelled}
            texts.append(f"{lacking}: add labels, or set {as_options(carved)}")
            fix |= carved
        raise UserError(". ".join(dict.fromkeys(texts)), fix)
    if lacking:
        raise Unusable(lacking, unlabelled, "add labels")
    return chosen, [] if splits & {"validation", "test"} else lists


def _check_columns(tables: list[Listing], args: DataArguments) -> None:
    """Check that one of the tables has the column that a setting names."""
    columns = dict.fromkeys(name for table in tables for name in table.table)
    for key in ("image_column", "label_column", "split_column"):
        given = getattr(args, key)
        if given not in (None, *columns) and not (key == "split_column" and is_none(given)):
            raise UserError(
                f"{key}: {given!r} is not a column of {listed(str(table.path) for table in tables)}"
                f"{nearest(given, columns)}: {listed(columns, 20)}"
            )


def _with_label(table: Listing, labels: set[str | None]) -> Listing:
    """The table, with the label column of the other tables if its own is unknown."""
    shared = labels & {*table.table.columns}
    if table.label is not None or len(shared) != 1:
        return table
    return replace(table, label=shared.pop(), unclear=None)


def _unlabelled(
    others: dict[Path, UserError], splits: set[str | None], path: Path, args: DataArguments
) -> dict[str, list[UserError]]:
    """Why tables named after a split have no labels, for each split that no other table has and that is wanted."""
    given = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    found: dict[str, list[UserError]] = {}
    for file, error in others.items():
        parts = file.relative_to(path).with_suffix("").parts
        split = split_of(own_split(parts[-2:] if file.stem == "metadata" else parts[-1:]))
        if split is not None and split not in splits and not is_none(given[split]):
            found.setdefault(split, []).append(error)
    return found


def labels_a_split_folder(table: Listing, root: Folder) -> bool:
    """Whether a table labels the images of a split's folder without class folders, as in Tiny ImageNet."""
    if table.label is None or not table.names_images:
        return False
    found = [table.files.find(str(text), split_of(table.split), table.path.parent)
             for text in sample(table.table)[table.image]]  # fmt: skip
    places = {
        files[0].relative_to(root.path).parts[0] for files in found if files and files[0].is_relative_to(root.path)
    }
    folder = root.folders.get(places.pop()) if len(places) == 1 else None
    return folder is not None and is_split_like(folder.path.name) and len(folder.with_images) < 2
