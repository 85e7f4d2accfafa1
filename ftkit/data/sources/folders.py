"""Folders of class folders as a `DatasetDict` of paths."""

import logging
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.config.arguments.data import FORMATS
from ftkit.errors import UserError, as_options, listed
from ftkit.files import natural_sorted

from .ledger import UNUSED_SPLIT, Folder, Ledger
from .split_folders import (
    HERE,
    check_bare,
    check_overlooked,
    class_folders,
    classes_hold_splits,
    inner_folder,
    is_documents,
    split_folders,
    suffixes_below,
    unread,
)
from .split_lists import Rows, read_lists
from .split_names import choose_splits, is_none, split_of

logger = logging.getLogger(__name__)


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


def read_class_folders(root: Folder, args: DataArguments, ledger: Ledger, need_train: bool = True) -> DatasetDict:
    """Read `<class>/…/<image>`, alone, below the folders of splits, or with folders of splits in each class.

    Folders that hold the data alone, such as `photos` in `photos/train`, are looked through.

    Args:
        need_train: whether data without train are an error.

    Raises:
        UserError: there are no images; it is not clear which folders are splits; a class's folder has no images.
    """
    if args.split_column is not None and not is_none(args.split_column):
        raise UserError(
            f"split_column: {args.split_column!r}: {root.path} holds class folders, without columns: leave it out",
            fix={"split_column": None},
        )
    ledger.elsewhere = "images outside of class folders"
    whole, root = root, inner_folder(root)
    if args.train_split != HERE and classes_hold_splits(root):
        return by_name(root.path, choose_splits(_splits_in_classes(root, args), args, root.path, need_train))
    splits = split_folders(root, args)
    if not splits:
        rows = _rows(root, args)
        if args.train_split == HERE:
            return by_name(root.path, {"train": rows})
        found, lists = read_lists(whole, rows)
        ledger.read(lists)
        listed_splits = choose_splits(found, args, whole.path, need_train) if found else {"train": rows}
        ledger.elsewhere = "images in no list of a split that is used" if found else ledger.elsewhere
        check_overlooked(whole, root, listed_splits, args)
        return by_name(root.path, listed_splits)
    chosen = choose_splits(splits, args, root.path, need_train)
    for folder in splits.values():
        if folder not in chosen.values():
            ledger.leave(folder.path, UNUSED_SPLIT)
    check_overlooked(whole, root, chosen, args)
    held = {split: class_folders(split, folder) for split, folder in chosen.items()}
    check_bare({split: folder for split, folder in held.items() if folder.images and not folder.with_images}, args)
    return by_name(root.path, {split: _rows(folder, args, split) for split, folder in held.items()})


def _splits_in_classes(root: Folder, args: DataArguments) -> dict[str, Rows]:
    """The images by split of `<class>/<split>/<image>`.

    Raises:
        UserError: the folders in `root` are data sets of their own, or not all of them hold splits.
    """
    found: dict[str, Rows] = {}
    for name, folder in root.with_images.items():
        within = folder.with_images
        if folder.images or not all(map(split_of, within)) or any(f.with_images for f in within.values()):
            first = next(f for f in root.with_images.values() if any(map(split_of, f.with_images)))
            fix = {"data_dir": str(first.path)}
            try:
                split_folders(first, args)
            except UserError as error:
                fix |= error.fix
            raise UserError(
                f"data_dir: {root.path}: {first.path.name} holds splits of its own ({listed(first.with_images)}): "
                f"set {as_options(fix)} to train on it, or --train_split {HERE} if each folder is a class",
                fix=fix,
            )
        if args.names_class(name):
            for split, images in within.items():
                found.setdefault(split, []).extend((path, name) for path in natural_sorted(images.images))
    return found


def _rows(root: Folder, args: DataArguments, split: str = "train") -> Rows:
    """The images of the class folders in `root`, in natural order.

    Raises:
        UserError: a class has none that ftkit reads, or there are no classes.
    """
    rows: Rows = []
    if args.train_split != HERE:
        _check_nesting(root, args)
    for path in natural_sorted(folder.path for folder in root.folders.values()):
        folder, kept = root.folders[path.name], args.names_class(path.name)
        images = natural_sorted(image for inner in folder.below() for image in inner.images)
        rows += [(image, path.name) for image in images]
        if not images and kept and root.holds_images:
            _check_empty(folder, root, split)
    if not rows and split == "train":
        raise UserError(
            f"data_dir: {root.path} holds no images in class folders (<class>/<image>){unread(root)}: expected "
            f"{FORMATS}"
        )
    return rows


def _check_nesting(root: Folder, args: DataArguments) -> None:
    """Refuse a wanted class that holds folders of those beside it; warn where all classes hold the same folders.

    Raises:
        UserError: a folder holds classes once more, as `PlantVillage/` in `PlantVillage/` does.
    """
    classes = {name: folder for name, folder in root.with_images.items() if args.names_class(name)}
    within = {name: set(folder.with_images) for name, folder in classes.items()}
    for name, inner in within.items():
        if len(inner & classes.keys()) > 1:
            others = natural_sorted(classes.keys() - {name})
            raise UserError(
                f"data_dir: {classes[name].path} holds folders of the same names as classes beside it "
                f"({listed(natural_sorted(inner & classes.keys()))}): move it away, or leave it out with "
                f"{as_options({'classes': others})}, or set --train_split {HERE} if it is a class",
                fix={"classes": others},
            )
    first = next(iter(within.values()), set())
    if len(first) > 1 < len(within) and all(inner == first and not classes[n].images for n, inner in within.items()):
        logger.warning(
            "  %s are taken for classes, and hold the same folders (%s): if these are the classes, set --data_dir to "
            "one of them",
            listed(within),
            listed(natural_sorted(first)),
        )


def _check_empty(folder: Folder, root: Folder, split: str) -> None:
    """Refuse a class without images; a folder of documents is none, nor one that is empty beside classes of test."""
    suffixes = suffixes_below(folder)
    if is_documents(folder) or (not suffixes and split != "train"):
        return
    others = natural_sorted(root.with_images)
    advice = f" or leave it out with {as_options({'classes': others})}"
    raise UserError(
        f"data_dir: the class folder {folder.path} holds no image that ftkit reads{unread(folder)}: add some, remove "
        f"it,{advice}",
        fix={"classes": others} if len(others) > 1 else None,
    )
