"""Parquet and webdataset shards as a `DatasetDict`."""

from pathlib import Path

import datasets.config
from datasets import DatasetDict, load_dataset
from datasets.fingerprint import Hasher

from ftkit.data.pixels.keys import file_state
from ftkit.data.sources.origins import with_places
from ftkit.errors import UserError, unwritable

from .split_names import SPLIT_NAMES

SHARDS = {"parquet": ".parquet", "webdataset": ".tar"}  # datasets' name of the format -> suffix


def find_shards(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Shards by split: `train-00000-of-00001.parquet`, `test.parquet`, `train/0000.parquet`."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob(f"*{suffix}")):
        # The file's name takes precedence over its folders'; the name of `data_dir` itself does not count.
        places = [file.stem.split("-")[0].lower(), *(part.lower() for part in file.parent.relative_to(folder).parts)]
        named = [split for place in places for split, names in SPLIT_NAMES.items() if place in names]
        split = named[0] if named else "train" if places[0].isdecimal() else places[0]
        found.setdefault(split, []).append(file)
    return {"train": next(iter(found.values()))} if len(found) == 1 else found


def read_shards(kind: str, files: dict[str, list[Path]]) -> DatasetDict:
    # datasets' own cache goes by paths and modification times, which a copy or an archive may preserve.
    state = Hasher.hash([file_state(path) for paths in files.values() for path in paths])
    names = {split: [str(path) for path in paths] for split, paths in files.items()}
    try:
        return with_places(load_dataset(kind, f"files-{state}", data_files=names), files)
    except Exception as error:  # datasets wraps errors of pyarrow and tarfile, in classes that depend on its version
        cause, listed = error.__cause__ or error, ", ".join(path for paths in names.values() for path in paths)
        refused = isinstance(cause, PermissionError)  # when reading a file
        full = None if refused else unwritable(cause, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
        raise full or UserError(f"data_dir: {listed} cannot be read as {kind}: {cause}") from error
