"""CSV and JSON-lines files of paths and labels, as a `DatasetDict` of paths."""

import json
import warnings
from pathlib import Path

import pandas as pd
from datasets import DatasetDict

from ftkit.errors import UserError, nearest

from .folders import by_name
from .split_names import SPLIT_NAMES

_PATH_COLUMNS = ("image", "file_name", "file", "filename", "path", "filepath", "image_path", "img")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "category")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


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
    return by_name(source, rows, (image or "", label or ""))


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
