"""Parquet and webdataset shards as a `DatasetDict`."""

import logging
import re
from collections.abc import Iterable
from os.path import commonpath
from pathlib import Path

import datasets.config
from datasets import DatasetDict, load_dataset
from datasets.fingerprint import Hasher

from ftkit.config import DataArguments
from ftkit.data.pixels.keys import file_state
from ftkit.errors import UserError, unwritable

from .origins import with_places
from .split_names import choose_splits, split_of

logger = logging.getLogger(__name__)
SHARDS = {"parquet": ".parquet", "webdataset": ".tar"}  # datasets' name of the format -> suffix
_TOTAL = re.compile(r"\d+-of-(\d+)")
# Parts of a name that number a shard or make it unique: `00000-of-00002`, `000001`, a hash or a UUID.
_COUNTER = re.compile(r"(?:^|[-_.])(\d+-of-\d+|(?=[a-f]*\d)[0-9a-f]{8,}(-[0-9a-f]{4}){0,3}|c?\d+)(?=$|[-_.])")


def find_shards(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Shards by what their paths below `root` share: `train` for `train-00000-of-00002.parquet`, `train/0000.parquet`.

    Folders that hold all of them do not count, unless they name a split.
    """
    files = sorted(files)
    shared = Path(commonpath([file.parent for file in files])).relative_to(root).parts
    outer = next((i for i, part in enumerate(shared) if split_of(part)), len(shared))
    found: dict[str, list[Path]] = {}
    for file in files:
        stem = file.name.removesuffix(file.suffix)
        while (rest := _COUNTER.sub("", stem)) != stem:
            stem = rest
        parts = [*file.parent.relative_to(root).parts[outer:], *([stem.rstrip("0123456789-_.")] if stem else [])]
        found.setdefault("/".join(part for part in parts if part) or "data", []).append(file)
    for name, shards in found.items():
        totals = {int(match[1]) for file in shards if (match := _TOTAL.search(file.name))}
        if totals and len(shards) < max(totals):
            logger.warning("%s: only %d of the %d shards of %s are here", root, len(shards), max(totals), name)
    return found


def used(found: dict[str, list[Path]], args: DataArguments, source: Path) -> dict[str, list[Path]]:
    """The shards of the splits that the run uses; those of other splits may lack the labels."""
    if len(found) == 1 and split_of(next(iter(found))) is None:
        return found  # a split column may divide it
    return {name: found[name] for name in choose_splits({name: name for name in found}, args, source).values()}


def read_shards(kind: str, files: dict[str, list[Path]]) -> DatasetDict:
    """Read shards by split; `kind` is a key of `SHARDS`."""
    # datasets' own cache goes by paths and modification times, which a copy or an archive may preserve.
    state = Hasher.hash([file_state(path) for paths in files.values() for path in paths])
    names = {f"split{i}": [str(path) for path in paths] for i, paths in enumerate(files.values())}
    try:
        read = load_dataset(kind, f"files-{state}", data_files=names)
    except Exception as error:  # datasets wraps errors of pyarrow and tarfile, in classes that depend on its version
        cause, listed = error.__cause__ or error, ", ".join(path for paths in names.values() for path in paths)
        refused = isinstance(cause, PermissionError)  # when reading a file
        full = None if refused else unwritable(cause, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
        advice = " Give each sample the same members, such as 1.jpg and 1.cls" if kind == "webdataset" else ""
        raise full or UserError(f"data_dir: {listed} cannot be read as {kind}: {cause}{advice}") from error
    return with_places(DatasetDict(zip(files, read.values(), strict=True)), files)
