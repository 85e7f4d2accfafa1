"""Tables of paths and labels as text: CSV in its dialects, JSON in its shapes, parquet."""

import codecs
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset

from ftkit.errors import UserError

from .split_names import split_of
from .suffixes import is_image_name

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".lst")
TEXT_SUFFIXES = (*CSV_SUFFIXES, ".jsonl", ".ndjson", ".json")
_SEPARATORS = ",;\t|"
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_UNREADABLE = (ValueError, TypeError, KeyError, RecursionError, OSError, AttributeError, pd.errors.ParserWarning,
               pd.errors.ParserError, pa.ArrowException)  # fmt: skip


class NoListing(UserError):
    """The file is no table of images and labels."""


class NotUtf8(UserError):
    """The table is not in UTF-8."""


class _OtherJson(ValueError):
    """The JSON is no table."""


def read_table(path: Path, encoding: str | None = None, images: int | None = None) -> pd.DataFrame:
    """The rows of a table, with values as text; empty ones are None, lists and objects are kept.

    CSV may be separated by commas, semicolons, tabs or bars, and may lack a header: the columns are then called
    `file_name` (the first with names of images), `split` (names of splits), `label` (the only other one), or by
    number. JSON may be an array of objects, of lists or of files, an object of columns, of each file's label, or of
    each label's files, the same by split, one object a line, or COCO's images, annotations and categories.

    Args:
        encoding: of a text. Default: that of its byte order mark, or UTF-8.
        images: the column of images of a CSV file without a header. Default: found by the suffix of an image's name.

    Raises:
        NoListing: the file holds JSON of another shape.
        NotUtf8: it is no UTF-8 text.
        UserError: it cannot be parsed, or holds no rows.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = _read_parquet(path)
        elif path.suffix.lower() in CSV_SUFFIXES:
            table = _read_csv(_text(path, encoding), path.suffix.lower(), images)
        else:
            table = _read_json(_text(path, encoding), lines=path.suffix.lower() != ".json")
    except UnicodeDecodeError as error:
        raise NotUtf8(
            f"{path}: byte {error.start} is not UTF-8 text: save the file as UTF-8, as with iconv -f latin1 -t utf-8"
        ) from None
    except _OtherJson as error:
        raise NoListing(f"{path}: {error}") from None
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None
    table = table.replace(r"^\s*$", None, regex=True).dropna(how="all") if path.suffix.lower() == ".csv" else table
    if table.empty:
        raise UserError(f"{path}: holds no rows")
    table.columns = [str(name).strip() for name in table.columns]
    texts = table.astype(object).map(_as_text).astype(object).reset_index(drop=True)
    return texts.where(texts.notna(), None)  # pandas writes NaN for None


def _as_text(value: Any) -> Any:
    if isinstance(value, (list, dict, np.ndarray)):
        return value
    return None if pd.isna(value) else value.decode() if isinstance(value, bytes) else str(value)


def _text(path: Path, encoding: str | None) -> str:
    data = path.read_bytes()
    encoding = encoding or next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    text = data.decode(encoding)
    if "\0" in text:
        raise ValueError("holds zero bytes, so it is no UTF-8 text: save it as UTF-8")
    return text


# --- CSV


def _read_csv(text: str, suffix: str, images: int | None) -> pd.DataFrame:
    text = re.sub(r"\Asep=.\s*\n|\A(\s*#.*\n)+(?=[^#\n]*[,;\t|])", "", text)  # Excel's first line, or comments
    head = next((line for line in text.splitlines() if line.strip()), "")
    separator = max("\t" if suffix == ".tsv" else ",", *_SEPARATORS, key=head.count)
    if suffix in (".txt", ".lst") and separator not in head:
        lines = _by_words([line for line in text.splitlines() if line.strip()])
        text, separator, head = "\n".join(map("\t".join, lines)), "\t", "\t".join(lines[0])
    names = [name.strip(" '\"") for name in head.split(separator)]
    if images is None:
        images = next((i for i, name in enumerate(names) if is_image_name(name)), None)  # a row, so there is no header
    spaced = all(name.startswith(" ") for name in head.split(separator)[1:])
    with warnings.catch_warnings():
        # A row with more values than the header is broken; pandas would take the first value as an index.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(
            io.StringIO(text),
            dtype=str,
            keep_default_na=False,
            sep=separator,
            index_col=False,
            header="infer" if images is None else None,
            skipinitialspace=spaced,
        )
    return table if images is None else _named(table, images)


def _by_words(lines: list[str]) -> list[list[str]]:
    """The columns of lines with blanks between them, which the names of files or classes may hold too."""
    words = [line.split() for line in lines]
    first, last = [line.split(None, 1) for line in lines], [line.rsplit(None, 1) for line in lines]
    if not all(is_image_name(row[0]) for row in words) and all(is_image_name(row[0]) for row in last):
        return last  # names of files with blanks
    if len({len(row) for row in words}) == 1 and not (len(words[0]) > 2 and words[0][-1].isalpha()):
        return words
    if len({len(row) for row in words}) == 1 and all(split_of(row[-1]) for row in words):
        return words
    return first if len({row[0] for row in first}) == len(first) else last


def _named(table: pd.DataFrame, image: object) -> pd.DataFrame:
    """A table without a header, with names for the columns of images, of names of splits and of labels."""
    names = {image: "file_name"}
    others = [name for name in table if name != image and str(name).isdecimal()]
    splits = [name for name in others if all(map(split_of, map(str, table[name].unique())))]
    if len(splits) == 1 and len(others) > 1:
        names[splits[0]] = "split"
        others.remove(splits[0])
    if len(others) == 1 and table[others[0]].nunique() < len(table):
        names[others[0]] = "label"
    return table.rename(columns=names)


# --- JSON


def _read_json(text: str, lines: bool) -> pd.DataFrame:
    try:
        content = None if lines and not text.lstrip().startswith("[") else json.loads(text)
    except json.JSONDecodeError:
        content = None
    if content is None:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    rows = [_as_object(row) for row in _rows(content)]
    if None in rows:
        raise _OtherJson("holds no object for each image")
    table = pd.DataFrame(rows)
    first = table.iloc[0] if len(table) else {}
    named = [name for name in table if str(name).isdecimal() and is_image_name(str(first[name]))]
    return _named(table, named[0]) if named else table


def _as_object(row: Any) -> dict[Any, Any] | None:
    """A row of JSON by columns: an object, a list, or the path of an image; None for anything else."""
    if isinstance(row, str) and ("/" in row or is_image_name(row)):
        return {"file_name": row}
    return dict(enumerate(row)) if isinstance(row, list) else row if isinstance(row, dict) else None


def _rows(content: Any) -> list[Any]:
    """The rows in JSON of any of the shapes that `read_table` names."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise _OtherJson("holds no array or object")
    if {"images", "annotations"} <= content.keys():
        return _coco_rows(content)
    records = {key: value for key, value in content.items() if _are_objects(value)}
    if len(records) == 1 and split_of(next(iter(records))) is None:  # {"info": {…}, "data": [{…}, …]}
        return next(iter(records.values()))
    if records or (content and all(split_of(key) for key in content)):
        named = records or content
        return [{**(_as_object(row) or {}), "split": key} for key, value in named.items() for row in _rows(value)]
    if all(isinstance(value, dict) for value in content.values()):
        if any(is_image_name(key) for key in content):
            return [{**row, "file_name": key} for key, row in content.items()]
        return pd.DataFrame(content).to_dict("records")  # by column, as pandas writes it
    if all(isinstance(value, list) for value in content.values()):
        firsts = {key: str(next(iter(value), "")) for key, value in content.items()}
        if all(is_image_name(first) or first.startswith(f"{key}/") for key, first in firsts.items()):
            return [{"file_name": item, "label": key} for key, items in content.items() for item in items]
        return pd.DataFrame(content).to_dict("records")  # by column
    return [{"file_name": key, "label": value} for key, value in content.items()]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _coco_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each annotation, with the image's file name and the category's name."""
    images = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content.get("categories", [])}
    marked = [(images[note["image_id"]], note["category_id"]) for note in content["annotations"]]
    rows = [{"file_name": file, "label": names.get(category, category)} for file, category in marked]
    without = {*images.values()} - {file for file, _ in marked}
    return rows + [{"file_name": file, "label": None} for file in sorted(without)]


# --- parquet


def _read_parquet(path: Path) -> pd.DataFrame:
    dataset = Dataset(pq.read_table(path))
    table = dataset.data.table.to_pandas()
    for name, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            table[name] = [
                feature.names[value] if value >= 0 else None for value in table[name].fillna(-1).astype(int)
            ]
    return table
