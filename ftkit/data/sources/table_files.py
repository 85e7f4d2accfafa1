"""The tables of a folder: which list images, and which of these are the data."""

import re
from pathlib import Path

from ftkit.config import DataArguments
from ftkit.errors import UserError

from .ledger import Folder
from .listings import Listing, read_listing
from .locate import ImageFiles
from .pictures import holds_pictures
from .split_names import is_none, is_split_like, split_of
from .suffixes import is_image_name
from .table_columns import sample
from .tables import TEXT_SUFFIXES, NoListing
from .unusable import Unusable

_LINE = 1000  # characters
_SHEETS = (".xls", ".xlsx", ".ods", ".numbers")


def find_tables(root: Folder, args: DataArguments) -> tuple[list[Listing], dict[Path, UserError]]:
    """The tables that list images, and why others do not; if the images of all are missing, all of them.

    Tables lie in the folder itself or in a split's folder; `metadata.csv`, `.jsonl` and `.parquet` in any.
    """
    folders = [root, *(folder for name, folder in root.folders.items() if is_split_like(name))]
    files = [folder.path / name for folder in folders for name in sorted(folder.files)]
    files += [folder.path / name for folder in root.below() for name in folder.files if Path(name).stem == "metadata"]
    splits = [folder for name, folder in root.folders.items() if is_split_like(name)]
    classes = {name for split in splits if len(split.with_images) > 1 for name in split.with_images}
    listings: list[Listing] = []
    others: dict[Path, UserError] = {}
    below: dict[Path, ImageFiles] = {}
    for file in dict.fromkeys(files):
        if file.suffix.lower() in _SHEETS:
            others[file] = NoListing(f"{file}: a spreadsheet is not read: save it as CSV")
        if not _is_table(file):
            continue
        place = Path(args.image_dir) if args.image_dir else file.parent
        try:
            if "submission" in file.stem.lower():
                raise NoListing(f"{file}: what is to be submitted is no label")
            listings.append(read_listing(file, root.path, below.setdefault(place, ImageFiles(place)), args, classes))
        except UserError as error:
            others[file] = error
    present = [listing for listing in listings if listing.names_images]
    missing = [listing.path for listing in listings if listing not in present] if present else []
    return present or listings, others | {file: NoListing("its images do not exist") for file in missing}


def _is_table(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix == ".txt" and not is_split_like(file.stem):  # of the many texts only a list of images
        with file.open(encoding="utf-8", errors="replace") as lines:
            return any(map(is_image_name, re.split(r"[\s,;|]", lines.readline(_LINE))))
    return suffix in TEXT_SUFFIXES or (suffix == ".parquet" and not holds_pictures(file))


def choose_tables(
    tables: list[Listing], others: dict[Path, UserError], path: Path, args: DataArguments
) -> list[Listing]:
    """The tables to read: all those that name a split, or else the only one.

    Raises:
        UserError: several tables could be the data, or that of a split has no labels.
    """
    chosen = [table for table in tables if table.split] or tables
    if not chosen[0].split and len({table.path.name for table in chosen}) > 1:
        listed = ", ".join(str(table.path.relative_to(path)) for table in chosen)
        raise UserError(
            f"data_dir: {path} holds several tables of images, {listed}: name the one to read, such as --data_dir "
            f"{chosen[0].path}",
            fix={"data_dir": str(chosen[0].path)},
        )
    given = {"validation": args.validation_split, "test": args.test_split}
    for file, error in others.items():
        split = split_of(file.stem)
        if split == "train" and args.need_train and split not in {split_of(table.split) for table in chosen}:
            raise error
        if split in given and not is_none(given[split]) and split not in {split_of(t.split) for t in chosen}:
            raise Unusable(str(error), [split], "add labels")
    return chosen


def is_of_split(table: Listing, root: Folder) -> bool:
    """Whether a table stands for the class folders that its images, in a split's folder, lack, as in Tiny ImageNet."""
    found = [table.files.find(str(text), split_of(table.split)) for text in sample(table.table)[table.image]]
    places = {
        files[0].relative_to(root.path).parts[0] for files in found if files and files[0].is_relative_to(root.path)
    }
    folder = root.folders.get(places.pop()) if len(places) == 1 else None
    return folder is not None and is_split_like(folder.path.name) and len(folder.with_images) < 2
