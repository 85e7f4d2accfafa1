"""Reads a dataset by name or folder into a `DatasetDict` with the columns `image`, `label` and `index`."""

import difflib
from pathlib import Path
from typing import NamedTuple

import datasets.config
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, load_dataset, load_from_disk

from ftkit.config import DataArguments
from ftkit.config.arguments.data import FORMATS
from ftkit.data.pixels.keys import follow_files
from ftkit.data.sources.folders import read_class_folders
from ftkit.data.sources.ledger import Folder, Ledger, scan
from ftkit.data.sources.paths import check_paths, named_files
from ftkit.data.sources.raw import IDX_NAME, cifar_kind, read_cifar_folder, read_idx_folder
from ftkit.data.sources.remote import from_hub
from ftkit.data.sources.shards import SHARDS, find_shards, read_shards, used
from ftkit.data.sources.splits import (
    Splits,
    canonical,
    check_classes,
    choose_datasets,
    complete_splits,
    keep_classes,
    take_fewer,
)
from ftkit.data.sources.tables import TABLE_SUFFIXES, read_tables, table_files
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
FASHION_NAMES = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                 "Ankle boot"]  # fmt: skip


def load_data(args: DataArguments, ledger: Ledger | None = None) -> Splits:
    """Read the dataset, complete its splits, and take the requested part.

    Args:
        ledger: takes an account of what is not used, which is logged in any case.

    Returns:
        `train`, `validation` and `test`, each with the columns `image` (`datasets.Image`), `label` (`ClassLabel`,
        the same names in each) and `index` (the row in the split as it was read).

    Raises:
        UserError: the data are missing or invalid, or name files outside of their folder.
    """
    raw = read_raw(args, ledger or Ledger())
    splits = canonical(raw.splits, args, raw.label_column)
    check_files(splits, args, raw)
    splits = keep_classes(splits, args.classes)
    check_classes(splits, args.data_dir or args.dataset)
    return take_fewer(complete_splits(splits, args), args)


class Raw(NamedTuple):
    """Data as they are read.

    Attributes:
        splits: those of `train`, `validation` and `test` that there are, with the data's own columns.
        label_column: the label column, if it is known.
        root: the content of `data_dir`, if that is a folder.
        ledger: the account of what is not used.
    """

    splits: DatasetDict
    label_column: str | None
    root: Folder | None
    ledger: Ledger


def read_raw(args: DataArguments, ledger: Ledger) -> Raw:
    """Read the dataset, and choose its splits; without train only for an evaluation."""
    root = None
    if args.data_dir:
        path = Path(args.data_dir)
        root = scan(path) if path.is_dir() else None
        splits = _read_folder(path, root, args, ledger)
    else:
        splits = _read_name(args, ledger)
    usual = _DEFAULT_LABELS.get(args.dataset or "")
    known = args.label_column is None and usual in next(iter(splits.values())).features
    return Raw(splits, usual if known else args.label_column, root, ledger)


def check_files(splits: DatasetDict, args: DataArguments, raw: Raw) -> None:
    """Check that no row names a file outside of the dataset, let caches follow the files, and account for the others.

    Raises:
        UserError: a row names a file elsewhere.
    """
    if not _is_list(args.data_dir):
        check_paths(splits, _own_folders(args))
    named = [named_files(dataset) for dataset in splits.values()]
    for dataset, files in zip(splits.values(), named, strict=True):
        follow_files(dataset, files)
    if raw.root is not None:
        raw.ledger.account(raw.root, (file for files in named for file in files if file is not None))


def _is_list(data_dir: str | None) -> bool:
    """Whether `data_dir` is a list of paths; the user's own list may name any file."""
    return data_dir is not None and Path(data_dir).is_file() and Path(data_dir).suffix.lower() in TABLE_SUFFIXES


def _own_folders(args: DataArguments) -> list[Path]:
    """The folders that hold the dataset's files."""
    if args.data_dir:
        path = Path(args.data_dir)
        return [path if path.is_dir() else path.parent]
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


def _read_folder(path: Path, root: Folder | None, args: DataArguments, ledger: Ledger) -> DatasetDict:
    """Read `data_dir`, whose format is recognised by its files; `root` is its content if it is a folder."""
    if not path.exists():
        parent = path.parent
        siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UserError(f"data_dir: {path} does not exist{hint}")
    if root is None:
        if path.suffix.lower() in TABLE_SUFFIXES:
            return read_tables({"train": path}, args.image_column, args.label_column)
        for kind, suffix in SHARDS.items():
            if path.suffix.lower() == suffix:
                return choose_datasets(read_shards(kind, find_shards([path], path.parent)), args, ledger, path)
        raise UserError(f"data_dir: {path} has an unknown format: expected {FORMATS}")
    if not (root.files or root.folders):
        raise UserError(f"data_dir: {path} is empty: expected {FORMATS}")
    files = [folder.path / name for folder in root.below() for name in folder.files]
    if "dataset_dict.json" in root.files or "dataset_info.json" in root.files:
        ledger.read(files)
        return choose_datasets(_read_saved(path), args, ledger, path)
    if idx := [name for name in root.files if IDX_NAME.match(name)]:
        ledger.read(path / name for name in idx)
        names = FASHION_NAMES if args.dataset == "fashion_mnist" else None
        splits = read_idx_folder(path)
        names = names or [str(i) for i in range(max(int(labels.max()) for _, labels in splits.values()) + 1)]
        return choose_datasets(_from_arrays(path, splits, names), args, ledger, path)
    if cifar := cifar_kind(path):
        ledger.read(path / name for name in root.files)
        return choose_datasets(_from_arrays(path, *read_cifar_folder(path, cifar)), args, ledger, path)
    if shards := [file for file in files if file.suffix.lower() == SHARDS["parquet"]]:
        return _read_shards("parquet", shards, path, args, ledger)
    if tables := table_files(path):
        ledger.read(tables.values())
        return read_tables(tables, args.image_column, args.label_column)
    # An archive may lie next to the folders it was unpacked to.
    shards = [file for file in files if file.suffix.lower() == SHARDS["webdataset"]]
    if shards and not root.holds_images:
        return _read_shards("webdataset", shards, path, args, ledger)
    return read_class_folders(root, args, ledger)


def _read_shards(kind: str, files: list[Path], root: Path, args: DataArguments, ledger: Ledger) -> DatasetDict:
    """Read shards by split, without those of splits that are not used, which may have other columns."""
    found = find_shards(files, root)
    ledger.read(file for files in found.values() for file in files)
    return choose_datasets(read_shards(kind, used(found, args, root)), args, ledger, root)


def _read_saved(path: Path) -> DatasetDict:
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, pa.ArrowInvalid, KeyError, IndexError) as error:
        raise UserError(f"data_dir: {path} is not a complete save_to_disk folder: {error}") from None
    saved = saved if isinstance(saved, DatasetDict) else DatasetDict({"data": saved})
    return saved.with_format(None)


def _read_digits() -> DatasetDict:
    """The 1,797 digits of 8 x 8 pixels inside scikit-learn (UCI ML hand-written digits, the test part)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _from_arrays(Path("scikit-learn"), {"train": (images, digits.target)}, [str(i) for i in range(10)])


def _make_blobs() -> DatasetDict:
    """2,000 points in 5 clouds of 10 dimensions, as images of 1 x 10 pixels: the smallest task."""
    from sklearn.datasets import make_blobs

    points, labels = make_blobs(2000, 10, centers=5, cluster_std=6.0, random_state=0)
    low, high = points.min(), points.max()
    pixels = np.rint((points - low) / (high - low) * 255).astype(np.uint8)
    return _from_arrays(Path("scikit-learn"), {"train": (pixels[:, None], labels)}, [f"blob {i}" for i in range(5)])


_EMBEDDED = {"digits": _read_digits, "blobs": _make_blobs}


def _from_arrays(source: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]], names: list[str]) -> DatasetDict:
    """Images (N, H, W) or (N, H, W, 3) uint8 and labels (N,) as a `DatasetDict` with an image column.

    Each image is stored as an uncompressed PNM file, a header before the pixels: nothing to encode, and readable as a
    `datasets.Image`.
    """
    built = {}
    for split, (images, labels) in splits.items():
        if int(labels.min()) < 0 or int(labels.max()) >= len(names):
            raise UserError(
                f"data_dir: {source}: {split} has labels from {labels.min()} to {labels.max()}, but there are "
                f"only {len(names)} classes"
            )
        height, width = images.shape[1:3]
        header = np.frombuffer(b"P%d %d %d 255\n" % (6 if images.ndim == 4 else 5, width, height), np.uint8)
        rows = np.concatenate(
            [np.broadcast_to(header, (len(images), len(header))), images.reshape(len(images), -1)], axis=1
        )
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
        files = pa.Array.from_buffers(
            pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
        )
        paths = pa.nulls(len(rows), pa.string())
        features = Features(image=Image(), label=ClassLabel(names=names))
        table = pa.table(
            {
                "image": pa.StructArray.from_arrays([files, paths], names=["bytes", "path"]),
                "label": pa.array(labels.astype(np.int64)),
            }
        )
        built[split] = Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))
    return DatasetDict(built)
