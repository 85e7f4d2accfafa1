"""A split as batches of uint8 images, and the tensor engine, which decodes a split once."""

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from ftkit.compat.datasets import fingerprint
from ftkit.data.augmentation.pixel_ops import shift
from ftkit.data.pixels.cache import cached, check_room
from ftkit.data.pixels.decoding import Decoder
from ftkit.data.pixels.images import encoded, file_bytes
from ftkit.data.pixels.keys import DECODING, cache_key
from ftkit.data.pixels.normalize import geometry_key, histogram
from ftkit.errors import UserError
from ftkit.tasks import task_of
from ftkit.tasks.columns import column

logger = logging.getLogger(__name__)
_VERSION = 6  # the cache's version: raise it when decoding changes
_DESCRIBING = ("source",)  # columns that the stored predictions keep


class Batch(NamedTuple):
    """The rows of a training batch.

    Attributes:
        rows: int64 (B,).
        epoch: the epoch, from 0.
        weight: factor of the batch's mean loss; 1 except for a last batch cut unevenly among the processes.
        following: int64 (1,), the next row in the epoch's order, which the last image is mixed with; None without
            mixing.
    """

    rows: torch.Tensor
    epoch: int
    weight: float = 1.0
    following: torch.Tensor | None = None


class Images(TorchDataset, ABC):
    """A split, batch by batch. The engine changes the speed of `pixels`, not its result.

    Attributes:
        engine: the engine's name in the configuration.
        task: the task of the labels.
        labels: the targets, (N, …).
        index: int64 (N,), the row of each image in the split it was read from.
        fingerprint: the dataset's fingerprint.
        hashes: uint64 (N,), hashes of the files' bytes: equal for images that are the same file.
        key: identifier of the pixels, from dataset, processor and mode.
        skipped: images that do not decode, as in `ftkit.data.pixels.decoding.Decoded`, with their `source`.
        kinds: the number of images of each kind of `ftkit.data.pixels.kinds.KINDS`.
        shape: (C, H, W), the shape of an image.
        seed: the seed; random numbers in `pixels`, if any, depend only on the seed, the epoch and the image's row.
    """

    engine: str
    kinds: Mapping[str, int] = MappingProxyType({})
    seed: int = 0

    def __init__(
        self, dataset: Dataset, hashes: np.ndarray, key: str, skipped: list[dict], shape: tuple[int, int, int]
    ):
        self.task = task_of(dataset.features)
        self.labels = self.task.tensor(dataset)
        self.index = torch.tensor(column(dataset, "index"))
        self.fingerprint, self.hashes = fingerprint(dataset), hashes
        self._files, self._rows = encoded(dataset), dataset
        self.key, self.skipped, self.shape = key, skipped, shape

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, batch: Batch | Sequence[int]) -> dict[str, Any]:
        """The batch: `pixel_values` uint8 (B, C, H, W), `labels`, `index` int64 (B,).

        A training batch also has its `epoch`, a `weight` if it is not 1, and, if a row is `following`, a dictionary of
        that name with the three tensors of that row (B = 1). All but pixels and labels are on the CPU.
        """
        rows, epoch, weight, following = batch if isinstance(batch, Batch) else Batch(torch.as_tensor(batch), 0)
        rows = rows if following is None else torch.cat([rows, following])
        there = rows.to(self.labels.device, non_blocking=True)
        found: dict[str, Any] = {
            "pixel_values": self.pixels(there, epoch),
            "labels": self.labels.index_select(0, there),
            "index": self.index.index_select(0, rows),
        }
        if following is not None:
            last = {name: values[-1:] for name, values in found.items()}
            found = {name: values[:-1] for name, values in found.items()} | {"following": last}
        if isinstance(batch, Batch):
            found["epoch"] = epoch
        return found if weight == 1 else found | {"weight": torch.tensor(weight)}

    @abstractmethod
    def pixels(self, rows: torch.Tensor, epoch: int = 0) -> torch.Tensor:
        """The images of rows int64 (B,): uint8 (B, C, H, W)."""

    def sample(self, count: int) -> torch.Tensor:
        """Up to `count` images, evenly spaced: uint8 (n, C, H, W)."""
        rows = torch.linspace(0, len(self) - 1, min(count, len(self))).long()
        return self.pixels(rows.to(self.labels.device)).cpu()

    def file(self, row: int) -> bytes:
        """The bytes of an image's original file.

        Raises:
            UserError: the file no longer exists.
        """
        file = self._files[row]["image"]
        try:
            return file_bytes(file)
        except OSError as error:
            raise gone(file["path"], error) from error

    def about(self) -> dict[str, list]:
        """The columns of `_DESCRIBING` that the data has, by name."""
        return {name: self._rows[name][:] for name in _DESCRIBING if name in self._rows.column_names}

    @abstractmethod
    def histogram(self) -> np.ndarray:
        """How often each value occurs in each channel: int64 (C, 256)."""


class ImageTensors(Images):
    """A split in one tensor: a batch is an index into it.

    Attributes:
        images: uint8 (N, C, H, W), a private memory map: changes stay in memory.
    """

    engine = "tensor"

    def __init__(self, images: torch.Tensor, dataset: Dataset, hashes: np.ndarray, key: str, skipped: list[dict]):
        _, channels, height, width = images.shape
        super().__init__(dataset, hashes, key, skipped, (channels, height, width))
        self.images = images

    def pixels(self, rows: torch.Tensor, epoch: int = 0) -> torch.Tensor:
        return self.images.index_select(0, rows)

    def histogram(self) -> np.ndarray:
        return histogram(self.images)

    def to(self, device: torch.device) -> None:
        """Move images and labels to a device, where batches are then made.

        `index` stays on the CPU, where augmentations draw by it without waiting for the device.
        """
        self.images, self.labels = self.images.to(device), self.labels.to(device)


class Viewed(TorchDataset):
    """The images of a split, mirrored, or shifted by `shift` pixels down and right, or both."""

    def __init__(self, images: Images, mirrored: bool, shift: int = 0):
        self.images, self.mirrored, self.shift = images, mirrored, shift

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """The batch, as from `Images`."""
        batch = self.images.__getitems__(rows)
        pixels = batch["pixel_values"]
        if self.shift:
            by, most = torch.full((len(pixels), 2), -self.shift, device=pixels.device), abs(self.shift)
            pixels = shift(pixels, by, (most, most), "reflect")
        return batch | {"pixel_values": pixels.flip(3) if self.mirrored else pixels}


def gone(file: str, reason: object) -> UserError:
    """The error for an image that was readable when the run began."""
    return UserError(
        f"{file} cannot be read any more: {reason}: restore it, and the same command resumes from what is saved"
    )


def collate(batch: Any) -> dict[str, Any]:
    """Pass on a batch of `Images`, which is collated already."""
    return batch


def image_tensors(dataset: Dataset, processor: Any, channels: int, cache_dir: str | None = None) -> ImageTensors:
    """Decode a split into a uint8 memory map, or take the cached one; images that do not decode are left out.

    Args:
        dataset: a dataset with the columns `image`, `label`, `index`.
        processor: the image processor saved with the model; it resizes and crops.
        channels: 1 or 3.
        cache_dir: the cache that holds the memory map; its key combines the dataset's fingerprint, the processor's
            geometry, `channels` and the versions of the packages that decode.

    Raises:
        UserError: a full disk.
    """
    key = tensor_key(dataset, processor, channels)

    def write(folder: Path) -> None:
        bad, hashes = [], np.zeros(len(dataset), np.uint64)
        decoder = Decoder(dataset, processor, channels)
        check_room(folder, len(dataset) * decoder.bytes_of_one, "decoded images", {"data_engine": "stream"})
        shape: tuple[int, ...] | None = None
        kinds: Counter[str] = Counter()
        with (folder / "images").open("wb") as file:
            for rows, decoded in decoder.over_all_rows(decoder, "decoding images"):
                bad += decoded.bad
                kinds += decoded.kinds
                hashes[rows.start + np.array(decoded.positions, int)] = decoded.hashes
                if decoded.pixels is not None:
                    shape = decoded.pixels.shape[1:]
                    file.write(np.ascontiguousarray(decoded.pixels).data)
            file.flush()
            os.fsync(file.fileno())  # before the folder is renamed
        np.save(folder / "hashes.npy", hashes)
        (folder / "about.json").write_text(json.dumps({"shape": shape, "skipped": bad, "kinds": kinds}))

    def complete(folder: Path) -> bool:
        about = json.loads((folder / "about.json").read_text())
        size, count = (folder / "images").stat().st_size, len(dataset) - len(about["skipped"])
        hashed = len(np.load(folder / "hashes.npy")) == len(dataset)
        return hashed and size == count * math.prod(about["shape"] or [0])

    folder = cached(key, write, cache_dir, complete)
    about = json.loads((folder / "about.json").read_text())
    good, hashes = decodable(dataset, about["skipped"]), np.load(folder / "hashes.npy")
    if good is not None:
        dataset, hashes = dataset.select(good), hashes[good]
    array = np.empty((0, channels, 0, 0), np.uint8)  # which a memory map cannot be
    if len(dataset):
        array = np.memmap(folder / "images", np.uint8, mode="c", shape=(len(dataset), *about["shape"]))
    tensors = ImageTensors(torch.from_numpy(array), dataset, hashes, key, about["skipped"])
    tensors.kinds = about["kinds"]
    return tensors


def tensor_key(dataset: Dataset, processor: Any, channels: int) -> str:
    """The key of a split's memory map in the cache; see `image_tensors`."""
    return cache_key(_VERSION, fingerprint(dataset), geometry_key(processor), channels, computed_by=DECODING)


def decodable(dataset: Dataset, skipped: list[dict]) -> np.ndarray | None:
    """The rows that decode, or None if all do; adds the `source` of those that do not to `skipped`."""
    if not skipped:
        return None
    if "source" in dataset.column_names:
        for bad in skipped:
            bad["source"] = dataset["source"][bad["row"]]
    return np.setdiff1d(np.arange(len(dataset)), [bad["row"] for bad in skipped])
