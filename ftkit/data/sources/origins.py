"""The column `source`: where each image came from, by a name that means something on other machines too."""

import os.path
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Value

from ftkit.compat.datasets import fingerprint, set_fingerprint
from ftkit.data.sources.paths import named_files

PLACE = "__place__"  # a column of places of rows in files or splits, for `with_sources`


def with_places(splits: DatasetDict, shards: dict[str, list[Path]]) -> DatasetDict:
    """Splits read from shards, with the place of each row in its shard.

    Args:
        splits: splits of parquet files, or of tar files with webdataset's columns `__url__` and `__key__`.
        shards: the files of each split, in the order of the rows.
    """

    def places(split: str, rows: Dataset) -> list[str]:
        if "__url__" in rows.column_names:
            members = zip(rows["__url__"][:], rows["__key__"][:], strict=True)
            return [os.path.normpath(os.path.abspath(url) + "/" + os.path.dirname(key)) for url, key in members]
        counts = [(os.path.abspath(path), pq.read_metadata(path).num_rows) for path in shards[split]]
        return [f"{path}[{row}]" for path, count in counts for row in range(count)]

    return DatasetDict({split: rows.add_column(PLACE, places(split, rows)) for split, rows in splits.items()})


def with_rows(raw: dict[str, Dataset]) -> dict[str, Dataset]:
    """The splits of a source, by its names, with the place of each row: in its split, unless it is known already."""
    return {
        name: rows
        if PLACE in rows.column_names
        else _with_column(rows, PLACE, [f"{name}[{row}]" for row in range(len(rows))])
        for name, rows in raw.items()
    }


def with_sources(splits: DatasetDict, raw: dict[str, Dataset], data_dir: str | None) -> DatasetDict:
    """Splits with a column `source`, text, that names no folder above the data's.

    It is the path of the file that a row names, below the data's folder, or else below the folder that all other files
    share. For bytes it is the row in a shard, `train-00001.parquet[17]`, or the member of an archive,
    `train.tar/cat/1.png`, or else the row in the split, `train[17]`; a row's own file name follows: `train[17]/1.png`.

    Args:
        splits: splits with a column `image`.
        raw: the same rows as they were read, by split.
        data_dir: the folder or file that the data were read from, if they were.
    """
    files = {split: [path and os.path.abspath(path) for path in named_files(rows)] for split, rows in splits.items()}
    roots = []
    if data_dir is not None:
        place = os.path.abspath(data_dir)
        roots.append(os.path.join(place if os.path.isdir(place) else os.path.dirname(place), ""))
    elsewhere = {
        os.path.dirname(path) for paths in files.values() for path in paths if path and not _root(path, roots)
    }
    if elsewhere:
        roots.append(os.path.join(os.path.commonpath(elsewhere), ""))

    def shown(path: str) -> str:
        return path.removeprefix(_root(path, roots)).replace(os.sep, "/")

    found = DatasetDict()
    for split, rows in splits.items():
        stored = _stored_names(rows, raw[split], split)
        named = files[split] or [None] * len(rows)
        sources = [shown(path or other) for path, other in zip(named, stored, strict=True)]
        found[split] = _with_column(rows, "source", sources)
    return found


def _root(path: str, roots: list[str]) -> str:
    """The first of the folders, each with a separator at its end, that a file is below; empty if there is none."""
    return next((root for root in roots if path.startswith(root)), "")


def _stored_names(rows: Dataset, raw: Dataset, split: str) -> list[str]:
    """The place of each row, followed by the file name that is stored beside its bytes."""
    places = raw[PLACE][:] if PLACE in raw.column_names else [f"{split}[{row}]" for row in range(len(rows))]
    paths = pc.struct_field(rows.select_columns("image").with_format("arrow")[:]["image"], "path").to_pylist()
    # These may be paths on the machine that made the data, Windows' too: their folders mean nothing here.
    names = [path and path.replace("\\", "/").rpartition("/")[2] for path in paths]
    return [f"{place}/{name}" if name else place for place, name in zip(places, names, strict=True)]


def _with_column(dataset: Dataset, name: str, values: list[str]) -> Dataset:
    """`dataset` with a column of text, and its old fingerprint, since its images and labels are the same."""
    added = dataset.add_column(name, values, feature=Value("string"))
    set_fingerprint(added, fingerprint(dataset))
    return added
