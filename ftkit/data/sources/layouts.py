"""Recognises the format of `data_dir` and reads it."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, Value, load_from_disk

from ftkit.config import DataArguments
from ftkit.config.arguments.data import FORMATS
from ftkit.errors import UserError, nearest

from .arrays import from_arrays
from .beside import Beside
from .folders import read_class_folders
from .ledger import Folder, Ledger, scan
from .listings import Listing, read_listing
from .locate import ImageFiles
from .paths import is_below, named_files
from .pictures import first_rows, holds_pictures, is_damaged, picture_columns
from .raw import FASHION_NAMES, IdxSet, cifar_kind, idx_sets, read_cifar_folder, read_idx_set
from .rows import as_datasets, read_listings
from .shards import SHARDS, find_shards, read_shards, used
from .split_folders import HERE, inner_folder
from .split_names import is_split_like, split_of
from .splits import choose_datasets
from .table_files import choose_tables, find_tables, labels_a_split_folder
from .tables import TEXT_SUFFIXES, NoListing
from .unpacking import is_archive, is_webdataset, unpacked

logger = logging.getLogger(__name__)


def read_folder(path: Path, root: Folder | None, args: DataArguments, ledger: Ledger) -> DatasetDict:
    """Read `data_dir`, recognising its format by its files; `root` is its content if it is a folder.

    Raises:
        UserError: the folder or file is damaged, or its format is unknown or ambiguous.
    """
    if args.image_dir is not None and not Path(args.image_dir).is_dir():
        raise UserError(f"image_dir: {args.image_dir} is not a folder")
    found = _read_file(path, args, ledger) if root is None else _read_folder(root, args, ledger)
    if args.image_dir is not None and not _names_images_in(found, args.image_dir):
        raise UserError(
            f"image_dir: {path} holds no table that names images in {args.image_dir}: leave image_dir out",
            fix={"image_dir": None},
        )
    return found


def find_root(path: Path) -> Folder | None:
    """The content of a folder, or of an archive, with archives unpacked; None for any other file.

    Archives in a folder that holds images are not unpacked, nor are webdatasets.

    Raises:
        UserError: there is no such file or folder, or an archive cannot be unpacked.
    """
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"data_dir: {path} does not exist{nearest(path.name, siblings)}")
    if path.is_dir():
        root = scan(path)
        archives = [folder.path / name for folder in root.below() for name in folder.files if is_archive(Path(name))]
    elif is_archive(path):
        root, archives = Folder(path.parent, [path.name]), [path]
    else:
        return None
    if not archives or root.holds_images:
        return root
    if all(map(is_webdataset, archives)):
        return root if path.is_dir() else None
    return unpacked(root)


def _names_images_in(splits: DatasetDict, folder: str) -> bool:
    return any(
        is_below(file, [folder])
        for dataset in splits.values()
        for column, feature in dataset.features.items()
        if isinstance(feature, Image)
        for file in named_files(dataset, column)
    )


def _read_folder(root: Folder, args: DataArguments, ledger: Ledger) -> DatasetDict:
    if not (root.files or root.folders):
        raise UserError(f"data_dir: {root.path} is empty: expected {FORMATS}")
    root = _unwrapped(root)
    path = root.path
    if "dataset_dict.json" in root.files or "dataset_info.json" in root.files:
        ledger.read(folder.path / name for folder in root.below() for name in folder.files)
        return choose_datasets(_read_saved(path), args, ledger, path)
    if sets := idx_sets(path):
        return _read_idx(_only_set(path, sets), path, args, ledger)
    if cifar := cifar_kind(path):
        ledger.read(path / name for name in root.files)
        return choose_datasets(from_arrays(path, *read_cifar_folder(path, cifar)), args, ledger, path)
    return _read_tree(root, args, ledger)


def _unwrapped(root: Folder) -> Folder:
    """The folder of the data: outer folders with only one folder in them, and perhaps archives, do not count."""
    while len(root.folders) == 1 and all(is_archive(root.path / name) for name in root.files):
        inner = next(iter(root.folders.values()))
        if inner.images or is_split_like(inner.path.name) or not (inner.files or inner.folders):
            break
        root = inner
    return root


def _read_file(path: Path, args: DataArguments, ledger: Ledger) -> DatasetDict:
    suffix = path.suffix.lower()
    for name, files in idx_sets(path.parent).items():
        if path in files.values():
            return _read_idx((name, files), path.parent, args, ledger)
    if suffix in TEXT_SUFFIXES or (suffix == ".parquet" and not holds_pictures(path)):
        images = ImageFiles(Path(args.image_dir) if args.image_dir else path.parent)
        table = read_listing(path, path.parent, images, args)
        found = read_listings(*choose_tables([table], {}, path.parent, args), path, args, ledger)
        ledger.log()
        return found
    for kind, shard in SHARDS.items():
        if suffix == shard:
            return choose_datasets(read_shards(kind, find_shards([path], path.parent)), args, ledger, path)
    raise UserError(f"data_dir: {path} has an unknown format: expected {FORMATS}")


def _only_set(path: Path, sets: dict[str, IdxSet]) -> tuple[str, IdxSet]:
    if len(sets) == 1:
        return next(iter(sets.items()))
    first = str(next(iter(next(iter(sets.values())).values())))
    raise UserError(
        f"data_dir: {path} holds the IDX files of {', '.join(map(repr, sets))}: name a file of one, such as "
        f"--data_dir {first}",
        fix={"data_dir": first},
    )


def _read_idx(found: tuple[str, IdxSet], path: Path, args: DataArguments, ledger: Ledger) -> DatasetDict:
    ledger.read(found[1].values())
    splits, names = read_idx_set(path, *found, FASHION_NAMES if args.dataset == "fashion_mnist" else None)
    return choose_datasets(from_arrays(path, splits, names), args, ledger, path)


def _read_saved(path: Path) -> DatasetDict:
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, pa.ArrowInvalid, KeyError, IndexError) as error:
        raise UserError(f"data_dir: {path} is not a complete save_to_disk folder: {error}") from None
    saved = saved if isinstance(saved, DatasetDict) else DatasetDict({"data": saved})
    return saved.with_format(None)


def _read_tree(root: Folder, args: DataArguments, ledger: Ledger) -> DatasetDict:
    """Read a folder of class folders, tables or shards, and record the files of the other kinds as not used.

    Class folders come first, unless a setting names a column or the images of a table.
    """
    path, files = root.path, [folder.path / name for folder in root.below() for name in folder.files]
    parquet = [file for file in files if file.suffix.lower() == ".parquet"]
    shards = [file for file in parquet if holds_pictures(file)]
    tables, others = find_tables(root, args)
    named = not {args.image_column, args.label_column, args.image_dir} <= {None, HERE}
    if _holds_class_folders(inner_folder(root)) and not (named and (tables or shards)):
        damaged = {shard: UserError("cannot be read as parquet") for shard in shards if is_damaged(shard)}
        if whole := [shard for shard in shards if shard not in damaged]:
            raise _several(path, "class folders", whole[0])
        _leave(ledger, path, others | damaged)
        return _read_class_folders(root, tables, others, args, ledger)
    if tables and shards and not named:
        raise _several(path, f"the table {tables[0].path.relative_to(path)}", shards[0])
    if tables:
        chosen, lists = choose_tables(tables, others, path, args)
        used_paths = {table.path for table in (*chosen, *lists)}
        left = {t.path: NoListing("is not needed beside the others") for t in tables if t.path not in used_paths}
        _leave(ledger, path, others | left)
        ledger.read(used_paths)
        return read_listings(chosen, lists, path, args, ledger)
    _leave(ledger, path, others)
    if shards:
        return _read_shards("parquet", shards, path, args, ledger)
    if unreadable := [error for error in others.values() if not isinstance(error, NoListing)]:
        raise unreadable[0]
    if not root.holds_images and (archives := [file for file in files if is_archive(file)]):
        return _read_shards("webdataset", archives, path, args, ledger)
    in_names = _classes_in_names(root)
    try:
        found = read_class_folders(root, args, ledger, Beside([], others))
    except UserError as error:
        if error.fix or not (others or in_names):
            raise
        raise UserError(". ".join([str(error), *map(str, others.values()), *in_names])) from None
    for hint in in_names:
        logger.warning("%s", hint)
    return as_datasets(found)


def _read_class_folders(
    root: Folder, tables: list[Listing], others: Mapping[Path, UserError], args: DataArguments, ledger: Ledger
) -> DatasetDict:
    """Read class folders, and the table of each split that has one instead."""
    of_splits = [table for table in tables if labels_a_split_folder(table, root)]
    rest = [table for table in tables if table not in of_splits and table.names_images]
    beside = Beside(rest, [*others, *(table.path for table in rest if not table.gives_splits)])
    if not of_splits:
        return as_datasets(read_class_folders(root, args, ledger, beside))
    ledger.read(table.path for table in of_splits)
    keys = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    named: dict[str, Any] = {f"{split}_split": None for split, name in keys.items() if name in root.folders}
    tabled = read_listings(of_splits, [], root.path, replace(args, **named), ledger, need_train=False)
    folders = {name: folder for name, folder in root.folders.items() if split_of(name) not in tabled}
    unnamed: dict[str, Any] = {f"{split}_split": None for split in tabled}
    inner, fewer = replace(root, folders=folders), replace(args, **unnamed)
    read = as_datasets(read_class_folders(inner, fewer, ledger, beside, "train" not in tabled))
    columns = {of_splits[0].image: "image", of_splits[0].label or "": "label"}
    renamed = {old: new for old, new in columns.items() if old != new}
    return DatasetDict({**read, **{split: dataset.rename_columns(renamed) for split, dataset in tabled.items()}})


def _classes_in_names(root: Folder) -> list[str]:
    """A hint if all images are in one folder and their names may begin with the class."""
    holders = [f for f in root.below() if f.images and split_of(f.path.name) not in ("validation", "test")]
    if len(holders) != 1:
        return []
    begin = Counter(re.split(r"[\W\d_]", file.name)[0] for file in holders[0].images)
    if len(begin) < 2 or min(begin.values()) < 2 or "" in begin:
        return []
    listed = ", ".join([*begin][:5]) + (", …" if len(begin) > 5 else "")
    return [
        f"The names of the images in {holders[0].path} begin with {listed}: if these are classes, sort the images "
        'into class folders, for example with: for f in *; do c="${f%%[._0-9]*}"; mkdir -p "$c" && mv "$f" "$c/"; done'
    ]


def _read_shards(kind: str, files: list[Path], path: Path, args: DataArguments, ledger: Ledger) -> DatasetDict:
    """Read the shards of the splits that are used; those of other splits may have other columns."""
    ledger.read(files)
    read = read_shards(kind, used(find_shards(files, path), args, path))
    return choose_datasets({split: _with_members(dataset) for split, dataset in read.items()}, args, ledger, path)


def _with_members(dataset: Dataset) -> Dataset:
    """`dataset` with the scalar fields of a sample's JSON file as columns, such as `json.label`."""
    feature = dataset.features.get("json")
    for name, kind in feature.items() if isinstance(feature, dict) else ():
        if isinstance(kind, Value):
            column = dataset.select_columns("json").with_format("arrow")[:]["json"]
            values = pc.struct_field(column, name).to_pylist()
            dataset = dataset.add_column(f"json.{name}", values, feature=kind)
    return dataset


def _holds_class_folders(root: Folder) -> bool:
    """Whether the folder, or the folder of one of its splits, holds several folders with images."""
    splits = [folder for name, folder in root.folders.items() if is_split_like(name)]
    classes = [name for name in root.with_images if not is_split_like(name)]
    return len(classes) > 1 or any(len(split.with_images) > 1 for split in splits)


def _several(path: Path, what: str, shard: Path) -> UserError:
    column = picture_columns(first_rows(shard))[0]
    return UserError(
        f"data_dir: {path} holds {what}, and images in {shard.relative_to(path)}: set --image_column {column} to read "
        "the parquet files, or move them elsewhere",
        fix={"image_column": column},
    )


def _leave(ledger: Ledger, root: Path, files: Mapping[Path, UserError]) -> None:
    """Record files that are not used, and why; those deeper below the root are only counted."""
    for file, why in files.items():
        if file.parent == root or is_split_like(file.parent.name):
            ledger.leave_file(file, why)
