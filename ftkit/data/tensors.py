"""Decode once: a split of images as one memory-mapped uint8 tensor, cached on disk."""

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets.config
import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ftkit.data.images import BAD_IMAGE_ERRORS, column, encoded, open_image, to_mode
from ftkit.data.pixels import geometry_key, pixel_geometry
from ftkit.errors import UserError

logger = logging.getLogger(__name__)
_CHUNK = 256
_VERSION = 1  # of what is cached: raise it when decoding changes


class ImageTensors(TorchDataset):
    """A split as tensors.

    Attributes:
        images: uint8 (N, C, H, W), a private memory map: read-only on disk.
        labels: int64 (N,).
        index: int64 (N,), the row of each image in the split it was read from.
        class_names: the name of each label.
        fingerprint: of the dataset.
        key: what of the dataset, the processor and the mode the pixels are.
        skipped: what did not decode: dictionaries of `index`, `file` and `reason`.
    """

    def __init__(self, images: torch.Tensor, dataset: Dataset, skipped: list[dict], key: str):
        self.images = images
        self.labels = torch.tensor(column(dataset, "label"))
        self.index = torch.tensor(column(dataset, "index"))
        self.class_names = dataset.features["label"].names
        self.fingerprint = dataset._fingerprint
        self.skipped = skipped
        self.key = key

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[row], "labels": self.labels[row], "index": self.index[row]}

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """The batch as `pixel_values` uint8 (B, C, H, W), `labels` and `index` int64 (B,): nothing per sample."""
        rows = torch.tensor(rows)
        columns = {"pixel_values": self.images, "labels": self.labels, "index": self.index}
        return {name: values.index_select(0, rows) for name, values in columns.items()}


def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch of `ImageTensors` is whole already."""
    return batch


def default_cache_dir() -> Path:
    """`ftkit/` beside the caches of the other Hugging Face libraries (`HF_HOME`)."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "ftkit"


def image_tensors(
    dataset: Dataset, processor, channels: int, on_bad_image: str = "error", cache_dir: str | None = None
) -> ImageTensors:
    """Decode a split into a uint8 memory map, or take the one that was made before.

    Args:
        dataset: columns `image`, `label`, `index`.
        processor: the image processor that is saved with the model; it resizes and crops.
        channels: 1 or 3.
        on_bad_image: `error` or `skip`.
        cache_dir: where to keep it. The key is made of the dataset's fingerprint, the processor's geometry and
            `channels`.

    Raises:
        UserError: images that do not decode (all are named, up to ten in the message), or a full disk.
    """
    key = Hasher.hash((_VERSION, dataset._fingerprint, geometry_key(processor), channels))

    def write(folder: Path) -> None:
        skipped = _decode(dataset, pixel_geometry(processor), channels, folder / "images.npy")
        (folder / "skipped.json").write_text(json.dumps(skipped))

    folder = cached(key, write, cache_dir)
    skipped = json.loads((folder / "skipped.json").read_text())
    if skipped and on_bad_image == "error":
        listed = "\n".join(f"  - {bad['file']}: {bad['reason']}" for bad in skipped[:10])
        raise UserError(
            f"{len(skipped)} of {len(dataset)} images do not decode:\n{listed}\n"
            "mend or remove them, or leave them out with --on_bad_image skip"
        )
    if len(skipped) == len(dataset):
        raise UserError(f"none of the {len(dataset)} images decodes: {skipped[0]['file']}: {skipped[0]['reason']}")
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    if skipped:
        good = np.setdiff1d(np.arange(len(dataset)), [bad["row"] for bad in skipped])
        images, dataset = images[torch.from_numpy(good)], dataset.select(good)
        logger.warning("left out %d images that do not decode, the first: %s", len(skipped), skipped[0]["file"])
    return ImageTensors(images, dataset, skipped, key)


def cached(key: str, write: Callable[[Path], None], cache_dir: str | None = None) -> Path:
    """The folder `key` of the cache. Where it is missing, `write` fills one aside, which is renamed when it is whole.

    Raises:
        UserError: a full disk, or a folder that cannot be written.
    """
    root = Path(cache_dir) if cache_dir else default_cache_dir()
    folder = root / key
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
        try:
            write(aside)
            try:
                os.replace(aside, folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same bytes
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        hint = "the disk is full: free space" if error.errno == errno.ENOSPC else "it cannot be written"
        raise UserError(f"cache_dir: {root}: {hint} ({error}), or give another folder") from error
    return folder


def _decode(dataset: Dataset, geometry: Callable, channels: int, path: Path) -> list[dict]:
    """Decode every image of `dataset` into the array at `path`; returns what did not decode."""
    skipped: list[dict] = []
    array = None
    index = column(dataset, "index").tolist()
    progress = tqdm(
        total=len(dataset),
        desc="decoding images",
        unit="image",
        disable=None if len(dataset) >= 2000 else True,
        leave=False,
    )
    for start in range(0, len(dataset), _CHUNK):
        rows, images = [], []
        chunk = encoded(dataset.select(range(start, min(start + _CHUNK, len(dataset)))))
        for row, file in enumerate(chunk["image"], start):
            try:
                images.append(to_mode(open_image(file), channels))
                rows.append(row)
            except BAD_IMAGE_ERRORS as error:
                name = file["path"] or f"row {index[row]}"
                skipped.append(
                    {"row": row, "index": index[row], "file": name, "reason": str(error) or type(error).__name__}
                )
        if images:
            pixels = geometry(images)
            if array is None:
                array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(dataset), *pixels.shape[1:]))
            array[rows] = pixels
        progress.update(min(_CHUNK, len(dataset) - start))
    progress.close()
    if array is not None:
        array.flush()
    return skipped
