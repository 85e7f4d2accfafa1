"""Reads class folders as rows of paths and classes, by split."""

import logging
from collections.abc import Mapping

from ftkit.config import DataArguments
from ftkit.config.arguments.data import FORMATS
from ftkit.console import fact
from ftkit.errors import UserError, as_options, listed
from ftkit.files import natural_sorted

from .beside import Beside
from .ledger import UNUSED_SPLIT, Folder, Ledger
from .listings import Listing
from .rows import Rows, splits_of_lists
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
from .split_names import choose_splits, is_none, split_of

logger = logging.getLogger(__name__)


def read_class_folders(
    root: Folder, args: DataArguments, ledger: Ledger, beside: Beside, need_train: bool = True
) -> dict[str, Rows]:
    """The images of `<class>/…/<image>`, `<split>/<class>/…/<image>` or `<class>/<split>/<image>`, by split.

    An outer folder that holds nothing else, such as `photos` of `photos/train`, does not count.

    Args:
        beside: the tables beside the folders: they may assign images to splits, but not to other classes.
        need_train: whether data without train raise an error.

    Raises:
        UserError: there are no images; it is unclear which folders are splits; a class has no images; or a table
            contradicts the folders.
    """
    ledger.elsewhere = "images outside of class folders"
    whole, root = root, inner_folder(root)
    splits: Mapping[str, Folder | Rows] = {}
    if args.train_split != HERE and classes_hold_splits(root):
        splits = _splits_in_classes(root, args)
    elif args.train_split != HERE and not _names_a_list(args, beside.lists, root):
        splits = split_folders(root, args)
    if not splits:
        rows = _rows(root, args)
        beside.check({"": rows}, root, args, ledger)
        if args.train_split == HERE:
            return {"train": rows}
        chosen = _by_lists(rows, beside.lists, whole, args, ledger, need_train)
        check_overlooked(whole, root, chosen, args, beside.unread)
        return chosen
    used = choose_splits(splits, args, root.path, need_train)
    for folder in splits.values():
        if isinstance(folder, Folder) and folder not in used.values():
            ledger.leave(folder.path, UNUSED_SPLIT)
    check_overlooked(whole, root, used, args, beside.unread)
    held = {split: class_folders(split, of) for split, of in used.items() if isinstance(of, Folder)}
    check_bare({split: folder for split, folder in held.items() if folder.images and not folder.with_images}, args)
    chosen = {s: _rows(held[s], args, s) if isinstance(of, Folder) else of for s, of in used.items()}
    beside.check(chosen, root, args, ledger)
    if not {args.train_split, args.validation_split, args.test_split} & splits.keys():
        names = {split: next(name for name, of in splits.items() if of is used[split]) for split in used}
        _check_lists(beside.lists, chosen, {f"{split}_split": name for split, name in names.items()})
    return chosen


def _names_a_list(args: DataArguments, lists: list[Listing], root: Folder) -> bool:
    """Whether a split setting names a list, or a value of a table's split column, and no folder."""
    keys = {args.train_split, args.validation_split, args.test_split} - root.folders.keys()
    return any(keys & {table.name, *(table.splits[1].values() if table.splits else ())} for table in lists)


def _by_lists(
    rows: Rows, lists: list[Listing], whole: Folder, args: DataArguments, ledger: Ledger, need_train: bool
) -> dict[str, Rows]:
    """`rows` divided into the splits that `lists` name; all are train without lists."""
    if not is_none(args.split_column) and args.split_column and not any(table.splits for table in lists):
        raise UserError(
            f"split_column: {args.split_column!r}: {whole.path} holds class folders, without columns: leave it out",
            fix={"split_column": None},
        )
    if not lists:
        return {"train": rows}
    fact("splits", f"from {listed(table.name for table in lists)}")
    ledger.read(table.path for table in lists)
    ledger.elsewhere = "images in no list of a split that is used"
    labels = dict(rows)
    found = splits_of_lists(list(labels), lists)
    named = {name: [(path, labels[path]) for path in natural_sorted(paths)] for name, paths in found.items()}
    return choose_splits(named, args, whole.path, need_train)


def _check_lists(lists: list[Listing], chosen: dict[str, Rows], fix: dict[str, str]) -> None:
    """Refuse lists that assign images to other splits than their folders do."""
    folders = {path: split for split, rows in chosen.items() for path, _ in rows}
    for table in lists:
        names = table.own_splits() if table.splits else [table.name] * len(table.found)
        for name, files in zip(names, table.found, strict=True):
            for path in files:
                if path in folders and split_of(name) not in (None, folders[path]):
                    raise UserError(
                        f"{table.path}: {path} is listed as {split_of(name)}, but lies in the folder of "
                        f"{folders[path]}: set {as_options(fix)} to go by the folders",
                        fix=fix,
                    )


def _splits_in_classes(root: Folder, args: DataArguments) -> dict[str, Rows]:
    """The images of `<class>/<split>/<image>`, by split.

    Raises:
        UserError: the folders in `root` are datasets of their own, or not all of them hold splits.
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
        UserError: a class has no image that ftkit reads, or there are no classes.
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
    """Refuse a class that holds folders named like the classes beside it; warn if all hold the same folders.

    Raises:
        UserError: a folder holds classes once more, as `PlantVillage/` in `PlantVillage/` does.
    """
    classes = {name: folder for name, folder in root.with_images.items() if args.names_class(name)}
    within = {name: set(folder.with_images) for name, folder in classes.items()}
    for name, inner in within.items():
        if len(inner & classes.keys()) > 1:
            others = natural_sorted(classes.keys() - {name})
            raise UserError(
                f"data_dir: {classes[name].path} holds folders named like the classes beside it "
                f"({listed(natural_sorted(inner & classes.keys()))}): move it away, or leave it out with "
                f"{as_options({'classes': others})}, or set --train_split {HERE} if it is a class",
                fix={"classes": others},
            )
    leaves = {n: {i.path.name for i in f.below() if i.images} for n, f in classes.items() if not f.images}
    shared = set.intersection(*leaves.values()) if len(leaves) == len(classes) > 1 else set()
    if len(shared) > 1:
        logger.warning(
            "  %s are read as classes, but hold the same folders (%s): if those are the classes, set --data_dir to "
            "one of them",
            listed(leaves),
            listed(natural_sorted(shared)),
        )
    elif deep := {name: of for name, of in leaves.items() if len(of) > 1}:
        name, of = next(iter(deep.items()))
        logger.info(
            "  images in %s are all of class %s (%d such classes)", listed(natural_sorted(of)), name, len(deep)
        )


def _check_empty(folder: Folder, root: Folder, split: str) -> None:
    """Refuse a class without images, except for a folder of documents or an empty one outside of train."""
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
