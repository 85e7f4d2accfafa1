"""Readers of the raw formats of MNIST and CIFAR, as numpy arrays."""

import gzip
import math
import pickle
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.console import fact
from ftkit.errors import UserError

_IDX_NAME = re.compile(
    r"((?P<set>.+?)[-_])?(?P<split>train|t10k|test)[-_](?P<what>images|labels)[-.]idx[123][-.](ubyte|int)(\.gz)?$"
)
_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
IdxSet = dict[tuple[str, str], Path]  # by split and "images" or "labels"
FASHION_NAMES = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                 "Ankle boot"]  # fmt: skip
_CHUNK = 1 << 20  # bytes
_BOMB_BYTES, _BOMB_RATIO = 1 << 28, 100  # a larger and better compressed gzip file is refused
_CIFAR_BATCHES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
_CIFAR_META = {"cifar10": "batches.meta", "cifar100": "meta"}


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, or of QMNIST's int32 labels, gzipped or not.

    The format of LeCun's MNIST page: two zero bytes, the type (8 = uint8, 12 = int32), the number of dimensions, each
    dimension as a big-endian uint32, then the values.

    Returns:
        array: (N, H, W) uint8 for images, (N,) uint8 for labels; (N, M) int32 for QMNIST's, with the class in the
            first column.

    Raises:
        UserError: the file cannot be read, has another magic number or type, or its length contradicts its header.
    """
    try:
        data = _unpacked(path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}. Download it again") from None
    if len(data) < 4 or data[:2] != b"\0\0":
        raise UserError(f"{path}: not an IDX file: it starts with {data[:4].hex() or 'nothing'}, expected 00000803")
    kind, ndim = data[2], data[3]
    if (kind, ndim) not in ((8, 1), (8, 3), (12, 2)):
        raise UserError(
            f"{path}: magic number {data[:4].hex()}: expected 00000803 (images) or 00000801 (labels), unsigned bytes"
        )
    if len(data) < 4 + 4 * ndim:
        raise UserError(f"{path}: cut short inside its header: {len(data)} bytes. Download it again")
    shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    expected, found = math.prod(shape) * _TYPES[kind].itemsize, len(data) - 4 - 4 * ndim
    if found != expected:
        what, count = ("cut short", found) if found < expected else ("too long", "more")
        raise UserError(
            f"{path}: {what}: its header says {' x '.join(map(str, shape))} = {expected} bytes of values, but there "
            f"are {count}. Download it again"
        )
    return np.frombuffer(data, _TYPES[kind], offset=4 + 4 * ndim).reshape(shape)


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, gzipped or not; of a gzipped one, at most one chunk more than its header announces."""
    packed = path.read_bytes()
    if packed[:2] != b"\x1f\x8b":
        return packed
    with gzip.open(BytesIO(packed)) as file:
        data = bytearray(file.read(4))
        ndim = data[3] if len(data) == 4 else 0
        data += file.read(4 * ndim)
        width = _TYPES.get(data[2], _TYPES[8]).itemsize if len(data) > 2 else 1
        announced = width * math.prod(struct.unpack(f">{ndim}I", data[4:])) if len(data) == 4 + 4 * ndim else 0
        if announced > max(_BOMB_BYTES, _BOMB_RATIO * len(packed)):
            raise UserError(
                f"{path}: its {len(packed):,} bytes announce {announced:,}, more than {_BOMB_RATIO} times as many: "
                "images do not compress that well. If it is genuine, unpack it yourself"
            )
        while len(data) <= 4 + 4 * ndim + announced and (chunk := file.read(_CHUNK)):
            data += chunk
    return bytes(data)


def idx_sets(folder: Path) -> dict[str, IdxSet]:
    """The IDX files in `folder` by the name before the split, such as `""` or `emnist-letters`.

    Some programs unpack each file into a folder of the same name; such a folder counts as the file.
    """
    sets: dict[str, IdxSet] = {}
    for path in sorted(folder.iterdir()):
        file = path / path.name if path.is_dir() else path
        if (match := _IDX_NAME.match(path.name)) and file.is_file():
            split = "train" if match["split"] == "train" else "test"
            sets.setdefault(match["set"] or "", {}).setdefault((split, match["what"]), file)
    return sets


def read_idx_set(
    folder: Path, name: str, files: IdxSet, names: list[str] | None = None
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """The splits of one of the `idx_sets` of a folder, and the names of its classes.

    EMNIST's images are stored transposed, and are turned upright.

    Args:
        names: the classes by label. Default: the characters in EMNIST's `<name>-mapping.txt`, or the labels found.

    Returns:
        splits: images (N, H, W) uint8 and labels (N,), numbers of the returned names, by `train` and `test`.
        names: the class names.

    Raises:
        UserError: a file is missing or damaged, or images and labels do not fit together.
    """
    splits = {}
    for split in dict.fromkeys(split for split, _ in files):
        for what in ("images", "labels"):
            if (split, what) not in files:
                raise UserError(
                    f"{folder}: the {what} of {split} are missing: expected an IDX file called "
                    f"{name and name + '-'}{split}-{what}-idx{3 if what == 'images' else 1}-ubyte, or with .gz"
                )
        images, labels = (read_idx(files[split, what]) for what in ("images", "labels"))
        labels = labels[:, 0].astype(np.int64) if labels.ndim == 2 and labels.shape[1] else labels
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(
                f"{folder}: {split}: images of shape {images.shape} do not match labels of shape {labels.shape}"
            )
        if not len(images):
            raise UserError(f"{files[split, 'images']}: holds no images. Download it again")
        splits[split] = images, labels
    if name.lower().startswith("emnist"):
        fact("images", "turned upright: EMNIST's files hold them transposed")
        splits = {split: (images.transpose(0, 2, 1), labels) for split, (images, labels) in splits.items()}
    if names is not None:
        return splits, names
    known = np.unique(np.concatenate([labels for _, labels in splits.values()]))
    characters = _characters(folder / f"{name}-mapping.txt")
    splits = {split: (images, np.searchsorted(known, labels)) for split, (images, labels) in splits.items()}
    return splits, [characters.get(label, str(label)) for label in known.tolist()]


def _characters(mapping: Path) -> dict[int, str]:
    """EMNIST's characters by label, from lines of a label and its character codes; the first code counts."""
    if not mapping.is_file():
        return {}
    rows = [[int(word) for word in line.split()] for line in mapping.read_text("ascii").splitlines() if line.strip()]
    return {label: chr(code) for label, code, *_ in rows}


# Raised when unpickling damaged bytes, which may also encode lengths that exceed the memory.
_DAMAGED = (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError, TypeError, LookupError, MemoryError,
            OverflowError)  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of numpy arrays only; any other name in the file is refused."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it loads {module}.{name}, which no CIFAR batch does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_cifar_batch(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    except _DAMAGED as error:
        raise UserError(f"{path}: not a CIFAR batch: {error or type(error).__name__}. Download it again") from None


def cifar_kind(folder: Path) -> str | None:
    """`"cifar10"`, `"cifar100"` or None, by the names of the files in `folder`."""
    for kind, files in _CIFAR_BATCHES.items():
        if (folder / files["train"][0]).is_file() and (folder / _CIFAR_META[kind]).is_file():
            return kind
    return None


def read_cifar_folder(folder: Path, kind: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """The splits and class names of a folder of CIFAR "python version" batches.

    Args:
        kind: the kind that `cifar_kind` returns.

    Returns:
        splits: `train` and `test`, each images (N, 32, 32, 3) uint8 and labels (N,) int64 (CIFAR-100: the fine ones).
        names: the class names in the order of the labels.
    """
    files, prefix = _CIFAR_BATCHES[kind], "fine_" if kind == "cifar100" else ""
    splits = {}
    for split in ("train", "test"):
        batches = [_read_cifar_batch(folder / name) for name in files[split]]
        label_key = f"{prefix}labels"
        for name, batch in zip(files[split], batches, strict=True):
            data = batch.get("data")
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
                raise UserError(f"{folder / name}: holds no uint8 `data` of 3072 values per image. Download it again")
            labels = batch.get(label_key)
            if not isinstance(labels, list) or [type(label) for label in labels] != [int] * len(data):
                raise UserError(f"{folder / name}: holds no `{label_key}` for its {len(data)} images")
            if not all(abs(label) < 2**31 for label in labels):
                raise UserError(f"{folder / name}: `{label_key}` holds {max(labels, key=abs)}. Download it again")
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = images, np.concatenate([np.asarray(batch[label_key], np.int64) for batch in batches])
    meta = folder / _CIFAR_META[kind]
    names = _read_cifar_batch(meta).get(f"{prefix}label_names")
    if not isinstance(names, list) or not names:
        raise UserError(f"{meta}: holds no `{prefix}label_names`. Download it again")
    return splits, [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
