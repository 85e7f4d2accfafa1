"""The column `source`: where each image came from, in terms that hold on other machines too."""

import os.path
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Value

from ftkit.compat.datasets import fingerprint, set_fingerprint
from ftkit.data.sources.paths import named_files

PLACE = "__place__"  # a temporary column for `with_sources`: where each row was stored


def with_places(splits: DatasetDict, shards: dict[str, list[Path]]) -> DatasetDict:
    """Add the column `PLACE` to splits read from shards: the position of each row in its shard.

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
    """Add the column `PLACE` to the splits that lack it: the position of each row in its split."""
    return {
        name: rows
        if PLACE in rows.column_names
        else _with_column(rows, PLACE, [f"{name}[{row}]" for row in range(len(rows))])
        for name, rows in raw.items()
    }


def with_sources(splits: DatasetDict, raw: dict[str, Dataset], data_dir: str | None) -> DatasetDict:
    """Add a text column `source` to each split, without the folders above the data.

    For a file, it is the path below the data folder, or, outside of that, below the common parent of such files. For
    bytes, it is the row of a shard, `train-00001.parquet[17]`, the member of an archive, `train.tar/cat/1.png`, or the
    row of the split, `train[17]`, followed by the file name that is stored with the bytes, if any: `train[17]/1.png`.

    Args:
        splits: splits with a column `image`.
        raw: the same rows as they were read, by split; with `PLACE` unless all images are files.
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
        named = files[split] or [None] * len(rows)
        stored = _stored_names(rows, raw[split]) if None in named else [""] * len(rows)

        sources = [shown(path or other) for path, other in zip(named, stored, strict=True)]
        found[split] = _with_column(rows, "source", sources)
    return found


def _root(path: str, roots: list[str]) -> str:
    """The first of the folders `roots`, which end with a separator, that holds the file; empty if none does."""
    return next((root for root in roots if path.startswith(root)), "")


def _stored_names(rows: Dataset, raw: Dataset) -> list[str]:
    """The place of each row, followed by the file name that is stored beside its bytes."""
    paths = pc.struct_field(rows.select_columns("image").with_format("arrow")[:]["image"], "path").to_pylist()
    # These may be paths, also of Windows, on the machine that built the dataset: only the file name is kept.
    names = [path and path.replace("\\", "/").rpartition("/")[2] for path in paths]
    return [f"{place}/{name}" if name else place for place, name in zip(raw[PLACE][:], names, strict=True)]


def _with_column(dataset: Dataset, name: str, values: list[str]) -> Dataset:
    """Add a text column and keep the fingerprint: images and labels are the same."""
    added = dataset.add_column(name, values, feature=Value("string"))
    set_fingerprint(added, fingerprint(dataset))
    return added
