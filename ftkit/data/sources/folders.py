"""Folders of class folders as a `DatasetDict` of paths."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.config.arguments.data import FORMATS, NO_SPLIT
from ftkit.errors import UserError
from ftkit.files import natural_sorted

from .ledger import UNUSED_SPLIT, Folder, Ledger, is_packed
from .split_names import SPLIT_NAMES, SPLITS, choose_splits, is_none, is_split_like, split_of
from .suffixes import plugin_of

logger = logging.getLogger(__name__)
HERE = "."  # the value of `train_split` for a folder of class folders, whatever these are called
# A folder of nothing but these is no class.
_DOCUMENTS = {"", ".cfg", ".csv", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log",
              ".md", ".pdf", ".pt", ".py", ".rst", ".sh", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml",
              ".yml"}  # fmt: skip
# Not the name of a class where it is alone in a split's folder.
_NO_CLASS = {"images", "image", "imgs", "img", "jpg", "jpeg", "data", "photos", "pictures"}
Rows = list[tuple[Path, str]]  # images with their classes


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
    ledger.elsewhere = "images outside of class folders"
    root = _inner(root)
    if args.train_split != HERE and _classes_hold_splits(root):
        return by_name(root.path, choose_splits(_splits_in_classes(root, args), args, root.path, need_train))
    splits = split_folders(root, args)
    if not splits:
        if args.train_split != HERE:
            _check_overlooked(root, {}, args)
        return by_name(root.path, {"train": _rows(root, args)})
    chosen = choose_splits(splits, args, root.path, need_train)
    for folder in splits.values():
        if folder not in chosen.values():
            ledger.leave(folder.path, UNUSED_SPLIT)
    _check_overlooked(root, chosen, args)
    held = {split: _classes(split, folder) for split, folder in chosen.items()}
    _check_bare({split: folder for split, folder in held.items() if folder.images and not folder.with_images})
    return by_name(root.path, {split: _rows(folder, args, split) for split, folder in held.items()})


def _check_overlooked(root: Folder, chosen: Mapping[str, Folder], args: DataArguments) -> None:
    """Refuse to carve a split out of train beside a folder or archive of that name whose images cannot be read.

    Raises:
        UserError: there is one.
    """
    given = {"validation": args.validation_split, "test": args.test_split}
    missing = [split for split, name in given.items() if split not in chosen and not is_none(name)]
    places = [name for name in root.files if is_packed(name)]
    if chosen:  # without splits, each folder is a class
        places += [name for name, folder in root.folders.items() if not folder.holds_images | _is_documents(folder)]
    if found := {split: name for name in places if (split := split_of(name)) in missing}:
        fix = {f"{split}_split": NO_SPLIT for split in found}
        places, splits = [str(root.path / name) for name in found.values()], " and ".join(found)
        raise UserError(
            f"data_dir: {_listed(places)} {_verb(places, 'look')} like {splits}, and holds no image that can be read: "
            f"unpack or convert it to class folders, or set {_settings(fix)} to carve {splits} out of train",
            fix=fix,
        )


def _check_bare(bare: dict[str, Folder]) -> None:
    """Refuse validation and test of images without class folders, all at once; `_rows` refuses such a train."""
    if bare and "train" not in bare:
        fix = {f"{split}_split": NO_SPLIT for split in bare}
        raise UserError(
            f"data_dir: {_listed(str(folder.path) for folder in bare.values())}: images outside of class folders: "
            f"move them to <class>/, or set {_settings(fix)} to carve {' and '.join(bare)} out of train",
            fix=fix,
        )


def _inner(folder: Folder) -> Folder:
    """The folder, or the only one in it with images, if that is neither a class nor a split."""
    while len(within := folder.with_images) == 1:
        inner = next(iter(within.values()))
        if (inner.images or is_split_like(inner.path.name)) and not _all_splits(inner):
            break
        folder = inner
    return folder


def _all_splits(folder: Folder) -> bool:
    """Whether the folders in it that hold images are all called like splits, and there are some."""
    return bool(folder.with_images) and all(map(is_split_like, folder.with_images))


def split_folders(root: Folder, args: DataArguments) -> dict[str, Folder]:
    """The folders of `root`, by name, if some are splits; empty if all are classes.

    A split's folder holds class folders, a class's folder holds images: CIFAR-100 has a class `train`.

    Raises:
        UserError: some look like splits, others do not.
    """
    folders = root.with_images
    named = [name for name in folders if is_split_like(name)]
    splits = {split_of(name) for name in named} - {None}
    keys = {args.train_split, args.validation_split, args.test_split} - {None}
    if args.train_split == HERE or not (named or keys):
        return {}
    alone, leaves = len(named) == len(folders), all(folders[name].images for name in named)
    if any(not is_none(name) and (name in folders or name not in SPLITS) for name in keys) or (alone and not leaves):
        return folders
    if leaves and (not splits or (len(splits) == 1 and not alone)):
        return {}
    if leaves and alone and (len(named) == 1 or len(splits) > 1):
        return folders  # of images without classes, as is said when they are read
    shared = Counter(name for split in named for name in folders[split].with_images)
    whole = [n for n in named if n.casefold() in SPLIT_NAMES.get(split_of(n) or "", ()) and not folders[n].images]
    fix = {"train_split": HERE}
    if whole or max(shared.values(), default=0) > 1:  # called so and nothing else, or two that hold the same class
        fix = {f"{split}_split": next(n for n in named if split_of(n) == split) for split in SPLITS if split in splits}
    others = [name for name in folders if name not in named]
    either = f"or set --train_split {HERE} if all of them are classes"
    if fix == {"train_split": HERE}:
        either = f"if all of them are classes, or name the splits, such as --train_split {named[0]}"
    others_are = f"{_listed(others)} {_verb(others, 'do')} not" if others else "hold images, no class folders"
    raise UserError(
        f"data_dir: {root.path}: {_listed(named)} {_verb(named, 'look')} like a split, and {others_are}: set "
        f"{_settings(fix)} {either}",
        fix=fix,
    )


def _classes(split: str, folder: Folder) -> Folder:
    """The folder that holds the class folders of a split: itself, or one in it, as in `seg_train/seg_train`."""
    while len(folder.with_images) == 1:
        only = next(iter(folder.with_images.values()))
        if split_of(only.path.name) != split and only.path.name.casefold() not in _NO_CLASS:
            break
        folder = only
    return folder


def _classes_hold_splits(root: Folder) -> bool:
    """Whether folders of `root` hold several splits: `<class>/train/<image>` beside `<class>/test/<image>`."""
    if any(is_split_like(name) for name in root.folders):
        return False
    return any(len({split_of(name) for name in f.with_images} - {None}) > 1 for f in root.with_images.values())


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
                f"data_dir: {root.path}: {first.path.name} holds splits of its own ({_listed(first.with_images)}): "
                f"set {_settings(fix)} to train on it, or --train_split {HERE} if each folder is a class",
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
        _check_nesting(root, args.classes)
    for path in natural_sorted(folder.path for folder in root.folders.values()):
        folder, kept = root.folders[path.name], args.names_class(path.name)
        images = natural_sorted(image for inner in folder.below() for image in inner.images)
        rows += [(image, path.name) for image in images]
        if not images and kept and root.holds_images:
            _check_empty(folder, root, split)
    if not rows and split == "train":
        raise UserError(
            f"data_dir: {root.path} holds no images in class folders (<class>/<image>){_unread(root)}: expected "
            f"{FORMATS}"
        )
    return rows


def _check_nesting(root: Folder, wanted: list[str] | None) -> None:
    """Refuse a wanted class that holds folders of those beside it; warn where all classes hold the same folders.

    Raises:
        UserError: a folder holds classes once more, as `PlantVillage/` in `PlantVillage/` does.
    """
    classes = {name: folder for name, folder in root.with_images.items() if wanted is None or name in wanted}
    within = {name: set(folder.with_images) for name, folder in classes.items()}
    for name, inner in within.items():
        if len(inner & classes.keys()) > 1:
            others = natural_sorted(classes.keys() - {name})
            raise UserError(
                f"data_dir: {classes[name].path} holds folders of the same names as classes beside it "
                f"({_listed(natural_sorted(inner & classes.keys()))}): move it away, or leave it out with --classes "
                f"{' '.join(others[:5])}{' …' * (len(others) > 5)}, or set --train_split {HERE} if it is a class",
                fix={"classes": others},
            )
    first = next(iter(within.values()), set())
    if len(first) > 1 < len(within) and all(inner == first and not classes[n].images for n, inner in within.items()):
        logger.warning(
            "  %s are taken for classes, and hold the same folders (%s): if these are the classes, set --data_dir to "
            "one of them",
            _listed(within),
            _listed(natural_sorted(first)),
        )


def _check_empty(folder: Folder, root: Folder, split: str) -> None:
    """Refuse a class without images; a folder of documents is none, nor one that is empty beside classes of test."""
    suffixes = _suffixes(folder)
    if _is_documents(folder) or (not suffixes and split != "train"):
        return
    others = natural_sorted(root.with_images)
    advice = f" or leave it out with --classes {' '.join(others[:5])}{' …' if len(others) > 5 else ''}"
    raise UserError(
        f"data_dir: the class folder {folder.path} holds no image that ftkit reads{_unread(folder)}: add some, remove "
        f"it,{advice}",
        fix={"classes": others} if len(others) > 1 else None,
    )


def _is_documents(folder: Folder) -> bool:
    suffixes = {suffix.lower() for suffix in _suffixes(folder)}
    return bool(suffixes) and suffixes <= _DOCUMENTS


def _suffixes(folder: Folder) -> Counter[str]:
    return Counter(Path(name).suffix for inner in folder.below() for name in inner.files)


def _unread(folder: Folder) -> str:
    """What a folder holds instead of images, and the package that reads it."""
    suffixes = _suffixes(folder)
    listed = ", ".join(f"{n:,} {suffix or 'without a suffix'}" for suffix, n in suffixes.most_common(4))
    packages = {package for suffix in suffixes if (package := plugin_of(suffix.lower()))}
    return (f": it holds {listed}" if listed else "") + "".join(f": pip install {name}" for name in sorted(packages))


def _verb(names: list[str], verb: str) -> str:
    """The verb in the number of its subject: `look` or `looks`."""
    return verb if len(names) > 1 else verb + ("es" if verb.endswith("o") else "s")


def _settings(fix: dict[str, str]) -> str:
    return " ".join(f"--{key} {value}" for key, value in fix.items())


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
