"""Folders of class folders, and CSV or JSON-lines files of paths and labels, as a `DatasetDict` of paths."""

import json
import warnings
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config.arguments.data import FORMATS
from ftkit.errors import UserError, nearest
from ftkit.files import natural_sorted

from .suffixes import image_suffixes

# The names that folders in the wild use for splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_PATH_COLUMNS = ("image", "file_name", "file", "filename", "path", "filepath", "image_path", "img")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "category")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def _path_dataset(rows: list[tuple[Path, str]], names: list[str], columns: tuple[str, str]) -> Dataset:
    """A `Dataset` with two `columns`: image paths, decoded when read, and labels by name in `names`."""
    paths, labels = [path for path, _ in rows], [label for _, label in rows]
    features = Features({columns[0]: Image(), columns[1]: ClassLabel(names=names)})
    return Dataset.from_dict({columns[0]: [str(path) for path in paths], columns[1]: labels}, features=features)


def _is_visible_dir(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def split_folders(folder: Path) -> dict[str, Path]:
    """The splits among the sub-folders of `folder`, by ftkit's names; empty without `train`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = next((key for key, names in SPLIT_NAMES.items() if path.name.lower() in names), None)
        if split is None or not _is_visible_dir(path):
            continue
        if split in found:
            raise UserError(f"data_dir: {found[split]} and {path} both hold {split}: keep one")
        found[split] = path
    return found if "train" in found else {}


def read_class_folders(folder: Path) -> DatasetDict:
    """Read `folder/<class>/**/image` or `folder/<split>/<class>/**/image`.

    The class names of all splits are merged, so a class missing from one split does not shift the labels.

    Raises:
        UserError: there are no images, fewer than two classes, or a class that train lacks.
    """
    roots = split_folders(folder) or {"train": folder}
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
    if not files["train"]:
        raise UserError(
            f"data_dir: {roots['train']} holds no images in class folders (<class>/<image>): expected {FORMATS}"
        )
    return _by_name(folder, files)


def holds_images(folder: Path) -> bool:
    """Whether there is an image file anywhere below `folder`."""
    suffixes = image_suffixes()
    return any(path.suffix.lower() in suffixes for path in folder.rglob("*"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _by_name(
    source: Path, files: dict[str, list[tuple[Path, str]]], columns: tuple[str, str] = ("image", "label")
) -> DatasetDict:
    names = natural_sorted({label for rows in files.values() for _, label in rows})
    trained = {label for _, label in files["train"]}
    if len(trained) < 2:
        raise UserError(
            f"data_dir: {source} has only one class, {', '.join(trained)!r}: a classifier needs at least two"
        )
    for split, rows in files.items():
        if unknown := natural_sorted({label for _, label in rows} - trained):
            raise UserError(
                f"data_dir: {source}: {split} has classes that train lacks: {', '.join(map(repr, unknown[:5]))}"
            )
    return DatasetDict({split: _path_dataset(rows, names, columns) for split, rows in files.items() if rows})


def table_files(folder: Path) -> dict[str, Path]:
    """CSV and JSON-lines files of `folder` by split: `train.csv`, `test.jsonl`, or a single file as `train`."""
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    found = {split: p for split, names in SPLIT_NAMES.items() for p in tables if p.stem.lower() in names}
    if "train" in found:
        return found
    return {"train": tables[0]} if len(tables) == 1 else {}


def _column(table: pd.DataFrame, path: Path, key: str, given: str | None, usual: tuple[str, ...]) -> str:
    """The `given` column, or the only one with a usual name."""
    columns = list(table.columns)
    if given is not None:
        if given not in columns:
            raise UserError(
                f"{key}: {given!r} is not a column of {path}: {', '.join(columns)}{nearest(given, columns)}"
            )
        return given
    found = [name for name in columns if name.lower() in usual]
    if len(found) != 1:
        raise UserError(
            f"{path}: {key} is {'ambiguous' if found else 'missing'}: set it to one of the columns "
            f"{', '.join(found or columns)}"
        )
    return found[0]


def read_tables(files: dict[str, Path], image_column: str | None, label_column: str | None) -> DatasetDict:
    """Read CSV (`.csv`, `.tsv`) or JSON-lines files whose rows hold a path, a label, and optionally a `split`.

    Paths are relative to the file that lists them. Labels are kept as text.

    Raises:
        UserError: a file that cannot be parsed, a missing column, an empty label, a path without a file.
    """
    rows: dict[str, list[tuple[Path, str]]] = {}
    source = files["train"]
    image, label = image_column, label_column
    for file_split, path in files.items():
        table = _read_table(path)
        image = _column(table, path, "image_column", image, _PATH_COLUMNS)
        label = _column(table, path, "label_column", label, _LABEL_COLUMNS)
        empty = table.index[table[label].isna() | (table[label] == "") | table[image].isna()]
        if len(empty):
            raise UserError(f"{path}: row {empty[0] + 1} has no {image!r} or no {label!r} ({len(empty)} such rows)")
        splits = table["split"] if "split" in table.columns else [file_split] * len(table)
        for name, text, split in zip(table[image], table[label], splits, strict=True):
            known = next((key for key, names in SPLIT_NAMES.items() if str(split).lower() in names), None)
            if known is None:
                raise UserError(f"{path}: split {split!r} is not one of train, validation, test")
            rows.setdefault(known, []).append((path.parent / name, text))
    missing = [path for split in rows.values() for path, _ in split if not path.is_file()]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of its images do not exist, such as {missing[0]}: paths are relative to "
            "the folder of the file that lists them"
        )
    if "train" not in rows:
        raise UserError(f"{source}: no row belongs to train")
    return _by_name(source, rows, (image or "", label or ""))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            with warnings.catch_warnings():
                # A row with more values than the header is broken; pandas would take the first value as an index.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=separator, index_col=False)
        else:
            table = pd.DataFrame([json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()])
    except (ValueError, TypeError, RecursionError, OSError, AttributeError, pd.errors.ParserWarning) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None
    if table.empty:
        raise UserError(f"{path}: holds no rows")
    table.columns = [str(name) for name in table.columns]
    for row, value in enumerate(table.to_numpy().flat):
        if isinstance(value, (list, dict)):
            raise UserError(f"{path}: row {row // table.shape[1] + 1} holds {value!r}: expected a path or a label")
    return table.map(lambda value: None if value is None or value != value else str(value)).astype(object)
