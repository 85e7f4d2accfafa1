"""Reads a dataset by name or folder into a `DatasetDict` with the columns `image`, `label` and `index`."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import datasets.config
import huggingface_hub.constants
import numpy as np
from datasets import DatasetDict, load_dataset

from ftkit.config import DataArguments
from ftkit.config.arguments.data import FORMATS
from ftkit.data.pixels.keys import follow_files
from ftkit.data.sources.arrays import from_arrays
from ftkit.data.sources.layouts import find_root, read_folder
from ftkit.data.sources.ledger import Folder, Ledger
from ftkit.data.sources.paths import check_paths, named_files
from ftkit.data.sources.pictures import as_pictures
from ftkit.data.sources.remote import from_hub
from ftkit.data.sources.split_folders import HERE
from ftkit.data.sources.splits import (
    Splits,
    canonical,
    check_classes,
    choose_datasets,
    complete_splits,
    keep_classes,
    take_fewer,
)
from ftkit.data.sources.tables import TEXT_SUFFIXES
from ftkit.errors import UserError

# By short name: the name on the Hub, the files of a local copy, and the label column if there are several.
HUB_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
SHORT_NAMES = ("digits", "blobs", *HUB_NAMES)
_IDX = "the four IDX files (train-images-idx3-ubyte.gz, …)"
_LOCAL_FILES = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "cifar10": "the python batches (data_batch_1, …) or parquet files (train-*.parquet, test-*.parquet)",
    "cifar100": "the python batches (train, test, meta) or parquet files (train-*.parquet, test-*.parquet)",
}
_DEFAULT_LABELS = {"cifar100": "fine_label"}


def load_data(args: DataArguments, ledger: Ledger | None = None) -> Splits:
    """Read the dataset, complete its splits, and take the requested part.

    Args:
        ledger: records what is not used, which is always logged.

    Returns:
        `train`, `validation` and `test`, each with the columns `image` (`datasets.Image`), `label` (`ClassLabel`,
        the same names in each) and `index` (the row in the split as it was read).

    Raises:
        UserError: the data are missing or invalid, or name files outside of their folder.
    """
    raw = read_raw(args, ledger or Ledger())
    splits = canonical(raw.splits, raw.args, raw.label_column)
    check_files(splits, raw)
    splits = keep_classes(splits, args.classes)
    check_classes(splits, args.data_dir or args.dataset)
    return take_fewer(complete_splits(splits, args), args)


class Raw(NamedTuple):
    """Data as they are read.

    Attributes:
        splits: `train`, `validation` and `test`, as far as they exist, with the data's own columns.
        args: the arguments, with the folder of an unpacked archive as `data_dir`.
        label_column: the label column, if it is known.
        root: the content of `data_dir`, if that is a folder.
        ledger: what is not used.
    """

    splits: DatasetDict
    args: DataArguments
    label_column: str | None
    root: Folder | None
    ledger: Ledger


def read_raw(args: DataArguments, ledger: Ledger) -> Raw:
    """Read the dataset, and choose its splits; only an evaluation may lack train."""
    given, root = args.data_dir, None
    path = Path(given) if given else None
    if path is not None and (root := find_root(path)) is not None:
        path = ledger.root = root.path
        args = replace(args, data_dir=str(path))
    try:
        splits = _read_name(args, ledger) if path is None else read_folder(path, root, args, ledger)
    except UserError as error:  # name the archive, unless --data_dir is to be in its unpacked folder
        if given and "data_dir" not in error.fix:
            error.args = (str(error).replace(str(path), given),)
        raise
    splits = as_pictures(splits, args.image_column, path if root or not path else path.parent)
    label, usual = args.label_column, _DEFAULT_LABELS.get(args.dataset or "")
    columns = {name for rows in splits.values() for name in rows.features}
    if label is None and usual in columns:
        label = usual
    elif label == HERE and root is not None and "label" in columns:
        label = "label"  # of class folders
    return Raw(splits, args, label, root, ledger)


def check_files(splits: DatasetDict, raw: Raw) -> None:
    """Refuse rows that name files outside of the dataset, tie caches to the files, and record unused files.

    Raises:
        UserError: a row names a file elsewhere.
    """
    if not _is_list(raw.args.data_dir):
        check_paths(splits, _own_folders(raw.args))
    named = [named_files(dataset) for dataset in splits.values()]
    for dataset, files in zip(splits.values(), named, strict=True):
        follow_files(dataset, files)
    if raw.root is not None:
        raw.ledger.account(raw.root, (file for files in named for file in files if file is not None))


def _is_list(data_dir: str | None) -> bool:
    """Whether `data_dir` is a list of paths; the user's own list may name any file."""
    return data_dir is not None and Path(data_dir).is_file() and Path(data_dir).suffix.lower() in TEXT_SUFFIXES


def _own_folders(args: DataArguments) -> list[Path]:
    """The folders that hold the dataset's files."""
    if args.data_dir:
        path = Path(args.data_dir)
        return [path if path.is_dir() else path.parent, *([Path(args.image_dir)] if args.image_dir else [])]
    caches = huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE
    return [Path(_hub_name(args)), *map(Path, caches)]


def _hub_name(args: DataArguments) -> str:
    name = args.dataset or ""
    return HUB_NAMES.get(name, name)


def _read_name(args: DataArguments, ledger: Ledger) -> DatasetDict:
    if args.dataset in _EMBEDDED:
        return choose_datasets(_EMBEDDED[args.dataset](), args, ledger, args.dataset)
    name = _hub_name(args)
    if "/" not in name and (close := difflib.get_close_matches(name, SHORT_NAMES)):
        raise UserError(f"dataset: {name!r} is unknown (did you mean {' or '.join(map(repr, close))}?)")
    local = _LOCAL_FILES.get(args.dataset or "", FORMATS)
    found = from_hub(
        lambda: load_dataset(name, args.dataset_config, revision=args.dataset_revision),
        what=f"dataset {name}",
        fix=f"set --data_dir to local files: {local}",
    )
    return choose_datasets(found, args, ledger, name)


def _read_digits() -> DatasetDict:
    """The 1,797 digits of 8 x 8 pixels inside scikit-learn (UCI ML hand-written digits, the test part)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return from_arrays(Path("scikit-learn"), {"train": (images, digits.target)}, [str(i) for i in range(10)])


def _make_blobs() -> DatasetDict:
    """2,000 points in 5 clouds of 10 dimensions, as images of 1 x 10 pixels: the smallest task."""
    from sklearn.datasets import make_blobs

    points, labels = make_blobs(2000, 10, centers=5, cluster_std=6.0, random_state=0)
    low, high = points.min(), points.max()
    pixels = np.rint((points - low) / (high - low) * 255).astype(np.uint8)
    return from_arrays(Path("scikit-learn"), {"train": (pixels[:, None], labels)}, [f"blob {i}" for i in range(5)])


_EMBEDDED = {"digits": _read_digits, "blobs": _make_blobs}
