"""Turns columns of encoded images, structs, arrays or paths into columns of `datasets.Image`."""

from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from ftkit.console import fact
from ftkit.data.pixels.images import BAD_IMAGE_ERRORS
from ftkit.errors import UserError
from ftkit.tasks.columns import type_name

from .locate import ImageFiles
from .split_names import split_of

_BATCH = 100  # rows
_SAMPLE = 8  # rows that show what a column holds


def holds_pictures(path: Path) -> bool:
    """Whether a column of a parquet file holds images; true for a damaged file, which its reader refuses."""
    return is_damaged(path) or bool(picture_columns(first_rows(path)))


def is_damaged(path: Path) -> bool:
    """Whether a parquet file cannot be read."""
    try:
        first_rows(path)
    except (OSError, pa.ArrowException, ValueError):
        return True
    return False


def first_rows(path: Path) -> Dataset:
    """The first rows of a parquet file."""
    file = pq.ParquetFile(path)
    return Dataset(pa.Table.from_batches(islice(file.iter_batches(batch_size=_SAMPLE), 1), schema=file.schema_arrow))


def picture_columns(dataset: Dataset) -> list[str]:
    """The columns of images, by their type and their first rows; paths do not count."""
    rows = dataset.with_format("arrow")[:_SAMPLE].to_pydict()
    return [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, Image) or any(_content(value) is not None for value in rows[name][:_SAMPLE])
    ]


def as_pictures(splits: DatasetDict, given: str | None, folder: Path | None) -> DatasetDict:
    """`splits` with the column `given`, or the only one that holds images, as `datasets.Image`.

    A column may hold images as bytes, as a struct with bytes, as lists of pixels from 0 to 255 of shape (H, W),
    (H, W, C) or (C, H, W), or as paths below `folder`.

    Raises:
        UserError: several columns hold images, or the named one holds something else.
    """
    return DatasetDict({split: _with_pictures(split, dataset, given, folder) for split, dataset in splits.items()})


def _with_pictures(split: str, dataset: Dataset, given: str | None, folder: Path | None) -> Dataset:
    if given is None:
        if any(isinstance(feature, Image) for feature in dataset.features.values()) or not len(dataset):
            return dataset
        found = picture_columns(dataset)
        if len(found) > 1:
            raise UserError(
                f"image_column: {len(found)} columns of {split} hold images: set image_column to "
                f"{' or '.join(map(repr, found))}",
                fix={"image_column": found[0]},
            )
        if not found:
            return dataset
        given = found[0]
        fact("images", f"from the column {given!r} of {split}")
    elif given not in dataset.column_names or isinstance(dataset.features[given], Image):
        return dataset
    feature = dataset.features[given]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view"):
        return _from_paths(split, dataset, given, folder)
    plain = (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")) or (
        isinstance(feature, dict) and feature.keys() & {"bytes", "path"}
    )
    if plain:
        return dataset.cast_column(given, Image())
    rows = dataset.with_format("arrow")[:_SAMPLE].to_pydict()[given]
    if not any(_content(value) is not None for value in rows):
        raise UserError(
            f"image_column: {given!r} holds {type_name(feature)}: expected images: encoded bytes, structs of bytes, "
            "lists of pixels from 0 to 255, or paths"
        )
    features = Features({**dataset.features, given: Image()})

    def convert(table: pa.Table) -> pa.Table:
        files = [{"bytes": _content(value), "path": None} for value in table[given].to_pylist()]
        place, kind = table.column_names.index(given), Image().pa_type
        return table.set_column(place, given, pa.array(files, kind))

    converted = dataset.with_format("arrow").map(convert, batched=True, batch_size=_BATCH, features=features)
    return converted.with_format(None)


def _from_paths(split: str, dataset: Dataset, name: str, folder: Path | None) -> Dataset:
    texts = dataset.with_format("arrow")[:][name].to_pylist()
    if folder is None:
        raise UserError(f"image_column: {name!r} holds text such as {texts[0]!r}: expected images")
    files = ImageFiles(folder)
    found = [files.find(text, split_of(split)) if text else [] for text in texts]
    if bad := [text for text, there in zip(texts, found, strict=True) if len(there) != 1]:
        raise UserError(
            f"image_column: {name!r}: {len(bad)} of its {len(texts)} rows do not name an image below {folder}, such "
            f"as {bad[0]!r}"
        )
    paths = [str(there[0]) for there in found]
    return dataset.remove_columns(name).add_column(name, paths, feature=Value("string")).cast_column(name, Image())


def _content(value: Any) -> bytes | None:
    """The image in a value as the bytes of an image file; None if there is none."""
    if isinstance(value, dict):
        held = [part for part in value.values() if isinstance(part, bytes)]
        value = value.get("bytes") or (held[0] if len(held) == 1 else None)
    if isinstance(value, list):
        if len(value) == 1 and (isinstance(value[0], dict | bytes)):
            return _content(value[0])
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            return None
        if array.dtype.kind not in "iu" or not array.size:
            return None
        if array.ndim > 1:
            return _encoded(array)
        value = array.astype(np.uint8).tobytes()  # the bytes of a file, perhaps signed
    if not isinstance(value, bytes):
        return None
    try:
        PILImage.open(BytesIO(value)).close()
    except BAD_IMAGE_ERRORS:
        return None
    return value


def _encoded(array: np.ndarray) -> bytes | None:
    """Pixels from 0 to 255 as a PNG file; None for other numbers and shapes."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.min() < 0 or array.max() > 255 or array.ndim > 3 or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        return None
    file = BytesIO()
    PILImage.fromarray(array.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
