"""Which of the folders in a folder are splits, and which are classes."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from ftkit.config import DataArguments
from ftkit.errors import UserError, as_options, listed

from .ledger import Folder, is_packed
from .split_names import SPLIT_NAMES, SPLITS, is_none, is_split_like, split_of, splits_named
from .suffixes import plugin_of
from .unusable import Unusable

# As `train_split`: each folder is a class, whatever its name. As `label_column`: the labels are the folders' names.
HERE = "."
# Suffixes: a folder of only such files is not a class.
_DOCUMENTS = {"", ".cfg", ".csv", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log",
              ".lst", ".md", ".pdf", ".pt", ".py", ".rst", ".sh", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml",
              ".yml"}  # fmt: skip
# Names that do not stand for a class if a split holds only this folder.
_NO_CLASS = {"images", "image", "imgs", "img", "jpg", "jpeg", "data", "photos", "pictures"}


def check_overlooked(
    whole: Folder, root: Folder, chosen: Mapping[str, object], args: DataArguments, unread: Collection[Path] = ()
) -> None:
    """Refuse to carve a split out of train if a file or folder of its name cannot be read.

    Args:
        whole: the content of `data_dir`.
        root: the folder in it that holds the folders of splits or classes.
        chosen: the splits that are read, from folders or lists.
        unread: tables that assign no images to splits.

    Raises:
        UserError: there is one.
    """
    given = {"validation": args.validation_split, "test": args.test_split}
    missing = [split for split, name in given.items() if split not in chosen and not is_none(name)]
    beside = [folder for folder in whole.below() if folder is whole or folder is root or not folder.holds_images]
    places = [folder.path / name for folder in beside for name in folder.files if is_packed(name)]
    if any(isinstance(folder, Folder) for folder in chosen.values()):  # otherwise each folder is a class
        places += [folder.path for folder in root.folders.values() if not folder.holds_images | is_documents(folder)]
    found: dict[Path, set[str]] = {place: {split_of(place.name) or ""} for place in places}
    found |= {path: splits_named(path.stem) for path in unread}
    if splits := [split for split in missing if any(split in of for of in found.values())]:
        names = [str(place) for place, of in found.items() if not of.isdisjoint(missing)]
        raise Unusable(
            f"data_dir: {listed(names)} {_verb(names, 'look')} like {' and '.join(splits)}, and "
            f"{_verb(names, 'do')} not hold or list images that can be read",
            splits,
            "unpack or convert it to class folders, list the images of each split in a file such as test.txt",
        )


def check_bare(bare: dict[str, Folder], args: DataArguments) -> None:
    """Refuse splits of images without class folders in one message; in training, `_rows` refuses such a train."""
    if bare and ("train" not in bare or not args.need_train):
        places = listed(str(folder.path) for folder in bare.values())
        raise Unusable(f"data_dir: {places}: images outside of class folders", bare, "move them to <class>/")


def inner_folder(folder: Folder) -> Folder:
    """The folder of the classes or splits: a single folder in it is entered, unless it is one of these itself."""
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
        if len({split_of(name) for name in named}) < len(named):  # such as trainA, trainB, testA and testB
            raise UserError(
                f"data_dir: {root.path}: {listed(named)} hold images outside of class folders: move them to "
                f"<split>/<class>/, or set --train_split {HERE} if each of them is a class",
                fix={"train_split": HERE},
            )
        return folders  # `check_bare` refuses these images without classes
    shared = Counter(name for split in named for name in folders[split].with_images)
    whole = [n for n in named if n.casefold() in SPLIT_NAMES.get(split_of(n) or "", ()) and not folders[n].images]
    fix = {"train_split": HERE}
    if whole or max(shared.values(), default=0) > 1:  # an exact split name, or two folders that share a class
        fix = {f"{split}_split": next(n for n in named if split_of(n) == split) for split in SPLITS if split in splits}
    others = [name for name in folders if name not in named]
    either = f"or set --train_split {HERE} if all of them are classes"
    if fix == {"train_split": HERE}:
        either = f"if all of them are classes, or name the splits, such as --train_split {named[0]}"
    others_are = f"{listed(others)} {_verb(others, 'do')} not" if others else "hold images, no class folders"
    raise UserError(
        f"data_dir: {root.path}: {listed(named)} {_verb(named, 'look')} like a split, and {others_are}: set "
        f"{as_options(fix)} {either}",
        fix=fix,
    )


def class_folders(split: str, folder: Folder) -> Folder:
    """The folder that holds the class folders of a split: itself, or one in it, as in `seg_train/seg_train`."""
    while len(folder.with_images) == 1:
        only = next(iter(folder.with_images.values()))
        if split_of(only.path.name) != split and only.path.name.casefold() not in _NO_CLASS:
            break
        folder = only
    return folder


def classes_hold_splits(root: Folder) -> bool:
    """Whether folders of `root` hold several splits: `<class>/train/<image>` beside `<class>/test/<image>`."""
    if any(is_split_like(name) for name in root.folders):
        return False
    return any(len({split_of(name) for name in f.with_images} - {None}) > 1 for f in root.with_images.values())


def is_documents(folder: Folder) -> bool:
    """Whether a folder holds documents and nothing else."""
    suffixes = {suffix.lower() for suffix in suffixes_below(folder)}
    return bool(suffixes) and suffixes <= _DOCUMENTS


def suffixes_below(folder: Folder) -> Counter[str]:
    """The suffixes of the files in a folder and below it, with their numbers."""
    return Counter(Path(name).suffix for inner in folder.below() for name in inner.files)


def unread(folder: Folder) -> str:
    """What a folder holds instead of images, and the package that reads it."""
    suffixes = suffixes_below(folder)
    listed = ", ".join(f"{n:,} {suffix or 'without a suffix'}" for suffix, n in suffixes.most_common(4))
    packages = {package for suffix in suffixes if (package := plugin_of(suffix.lower()))}
    return (f": it holds {listed}" if listed else "") + "".join(f": pip install {name}" for name in sorted(packages))


def _verb(names: list[str], verb: str) -> str:
    """The verb in the number of its subject: `look` or `looks`."""
    return verb if len(names) > 1 else verb + ("es" if verb.endswith("o") else "s")
