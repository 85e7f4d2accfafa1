"""Folders of class folders as a `DatasetDict` of paths."""

from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config.arguments.data import FORMATS
from ftkit.errors import UserError
from ftkit.files import natural_sorted
from ftkit.tasks.single_label.similar import unknown_and_similar

from .split_names import SPLIT_NAMES
from .suffixes import image_suffixes


def _path_dataset(rows: list[tuple[Path, str]], names: list[str], columns: tuple[str, str]) -> Dataset:
    """A `Dataset` with two `columns`: image paths, decoded when read, and labels by name in `names`."""
    paths, labels = [path for path, _ in rows], [label for _, label in rows]
    features = Features({columns[0]: Image(), columns[1]: ClassLabel(names=names)})
    return Dataset.from_dict({columns[0]: [str(path) for path in paths], columns[1]: labels}, features=features)


def _is_visible_dir(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def split_folders(folder: Path, need_train: bool = True) -> dict[str, Path]:
    """The splits among the sub-folders of `folder`, by ftkit's names; empty without `train`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = next((key for key, names in SPLIT_NAMES.items() if path.name.lower() in names), None)
        if split is None or not _is_visible_dir(path):
            continue
        if split in found:
            raise UserError(f"data_dir: {found[split]} and {path} both hold {split}: keep one")
        found[split] = path
    return found if "train" in found or not need_train else {}


def read_class_folders(folder: Path, need_train: bool = True) -> DatasetDict:
    """Read `folder/<class>/**/image` or `folder/<split>/<class>/**/image`.

    The class names of all splits are merged, so a class missing from one split does not shift the labels.

    Raises:
        UserError: there are no images, fewer than two classes, or a class that train lacks.
    """
    roots = split_folders(folder, need_train) or {"train": folder}
    suffixes = image_suffixes()
    files: dict[str, list[tuple[Path, str]]] = {}
    for split, root in roots.items():
        files[split] = [
            (path, class_dir.name)
            for class_dir in natural_sorted(p for p in root.iterdir() if _is_visible_dir(p))
            for path in natural_sorted(class_dir.rglob("*"))
            if path.suffix.lower() in suffixes and not _is_hidden(path.relative_to(class_dir))
        ]
        if split != "train" and not files[split] and any(path.suffix.lower() in suffixes for path in root.iterdir()):
            raise UserError(f"data_dir: {root} holds images outside of class folders: move them to {split}/<class>/")
    if not (files["train"] if need_train else any(files.values())):
        raise UserError(
            f"data_dir: {next(iter(roots.values()))} holds no images in class folders (<class>/<image>): expected {FORMATS}"
        )
    return by_name(folder, files, need_train=need_train)


def holds_images(folder: Path) -> bool:
    """Whether there is an image file anywhere below `folder`."""
    suffixes = image_suffixes()
    return any(path.suffix.lower() in suffixes for path in folder.rglob("*"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def by_name(
    source: Path,
    files: dict[str, list[tuple[Path, str]]],
    columns: tuple[str, str] = ("image", "label"),
    need_train: bool = True,
) -> DatasetDict:
    names = natural_sorted({label for rows in files.values() for _, label in rows})
    trained = {label for _, label in files.get("train", [])}
    if not need_train:
        trained = set(names)
    elif len(trained) < 2:
        raise UserError(
            f"data_dir: {source} has only one class, {', '.join(trained)!r}: a classifier needs at least two"
        )
    for split, rows in files.items():
        if unknown := unknown_and_similar({label for _, label in rows}, trained)[0]:
            raise UserError(
                f"data_dir: {source}: {split} has classes that train lacks: {', '.join(map(repr, unknown[:5]))}"
            )
    return DatasetDict({split: _path_dataset(rows, names, columns) for split, rows in files.items() if rows})
