"""A split as batches of uint8 images, and the engine that decodes all of it once."""

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from ftkit.compat.datasets import fingerprint
from ftkit.data.augmentation.pixel_ops import shift
from ftkit.data.pixels.cache import cached
from ftkit.data.pixels.decoding import Decoded, Decoder, over_all_rows
from ftkit.data.pixels.images import encoded, file_bytes
from ftkit.data.pixels.keys import DECODING, cache_key
from ftkit.data.pixels.normalize import geometry_key, histogram
from ftkit.errors import UserError
from ftkit.tasks import task_of
from ftkit.tasks.columns import column

logger = logging.getLogger(__name__)
_VERSION = 4  # of what is cached: raise it when decoding changes


class Batch(NamedTuple):
    """What a batch of training is made of.

    Attributes:
        rows: int64 (B,).
        epoch: from 0.
        weight: of its mean loss among those of the processes: 1 but where a last batch is not cut evenly.
        following: int64 (1,), the row that comes next in the epoch's order, which the last image is mixed with; None
            where nothing is mixed.
    """

    rows: torch.Tensor
    epoch: int
    weight: float = 1.0
    following: torch.Tensor | None = None


class Images(TorchDataset, ABC):
    """A split, batch by batch. What `pixels` gives depends on the engine only in its speed.

    Attributes:
        engine: its name in the configuration.
        task: what the labels are.
        labels: its targets, (N, …).
        index: int64 (N,), the row of each image in the split it was read from.
        fingerprint: of the dataset.
        hashes: uint64 (N,), of the files' bytes: equal where two images are the same file.
        key: what of the dataset, the processor and the mode the pixels are.
        skipped: what did not decode, as in `ftkit.data.pixels.decoding.Decoded`.
        shape: of an image, (C, H, W).
        seed: what `pixels` draws, if it does, depends on this, the epoch and the image's row, and on nothing else.
    """

    engine: str
    seed: int = 0

    def __init__(
        self, dataset: Dataset, hashes: np.ndarray, key: str, skipped: list[dict], shape: tuple[int, int, int]
    ):
        self.task = task_of(dataset.features)
        self.labels = self.task.tensor(column(dataset, "label"))
        self.index = torch.tensor(column(dataset, "index"))
        self.fingerprint, self.hashes = fingerprint(dataset), hashes
        self._files = encoded(dataset)
        self.key, self.skipped, self.shape = key, skipped, shape

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, batch: Batch | Sequence[int]) -> dict[str, Any]:
        """The batch as `pixel_values` uint8 (B, C, H, W), `labels`, `index` int64 (B,).

        A batch of training has its `epoch` too, a `weight` if not 1, and, where a row is `following`, these three of
        it, with B = 1, in a dictionary of that name. All but the pixels and the labels is on the CPU.
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
        """The file of an image, as it was found.

        Raises:
            UserError: it is not there any more.
        """
        file = self._files[row]["image"]
        try:
            return file_bytes(file)
        except OSError as error:
            raise gone(file["path"], error) from error

    @abstractmethod
    def histogram(self) -> np.ndarray:
        """How often each value occurs in each channel: int64 (C, 256)."""


class ImageTensors(Images):
    """A split in one tensor: a batch is one index into it.

    Attributes:
        images: uint8 (N, C, H, W), a private memory map: read-only on disk.
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

        `index` stays: the host, which draws augmentations by it, would have to wait for it.
        """
        self.images, self.labels = self.images.to(device), self.labels.to(device)


class Viewed(TorchDataset):
    """The images of a split, mirrored, or shifted by `shift` pixels down and right, or both."""

    def __init__(self, images: Images, mirrored: bool, shift: int = 0):
        self.images, self.mirrored, self.shift = images, mirrored, shift

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """As `Images` do it."""
        batch = self.images.__getitems__(rows)
        pixels = batch["pixel_values"]
        if self.shift:
            by, most = torch.full((len(pixels), 2), -self.shift, device=pixels.device), abs(self.shift)
            pixels = shift(pixels, by, (most, most), "reflect")
        return batch | {"pixel_values": pixels.flip(3) if self.mirrored else pixels}


def gone(file: str, reason: object) -> UserError:
    """Of an image that could be read when the run began: what to do."""
    return UserError(
        f"{file} cannot be read any more: {reason}: bring it back, and the same command goes on from what is saved"
    )


def collate(batch: Any) -> dict[str, Any]:
    """A batch of `Images`, which is collated already."""
    return batch


def image_tensors(
    dataset: Dataset, processor: Any, channels: int, on_bad_image: str = "error", cache_dir: str | None = None
) -> ImageTensors:
    """Decode a split into a uint8 memory map, or take the one that was made before.

    Args:
        dataset: columns `image`, `label`, `index`.
        processor: the image processor that is saved with the model; it resizes and crops.
        channels: 1 or 3.
        on_bad_image: `error` or `skip`.
        cache_dir: where to keep it. The key is made of the dataset's fingerprint, the processor's geometry,
            `channels`, and the versions of what decodes.

    Raises:
        UserError: images that do not decode (all are named, up to ten in the message), or a full disk.
    """
    parts = _VERSION, fingerprint(dataset), geometry_key(processor), channels
    key = cache_key(*parts, computed_by=DECODING)

    def write(folder: Path) -> None:
        shape, missing, bad, hashes = None, 0, [], np.zeros(len(dataset), np.uint64)
        with (folder / "images").open("wb") as file:
            decoder = Decoder(dataset, processor, channels)
            for rows, decoded in over_all_rows(decoder, len(dataset), "decoding images"):
                bad += decoded.bad
                hashes[rows.start + np.array(decoded.positions, int)] = decoded.hashes
                if decoded.pixels is None and shape is None:
                    missing += len(rows)
                    continue
                if shape is None:
                    shape = decoded.pixels.shape[1:]
                    file.write(bytes(missing * math.prod(shape)))
                file.write(_in_place(decoded, len(rows), shape).data)
            file.flush()
            os.fsync(file.fileno())  # before the folder gets its name
        np.save(folder / "hashes.npy", hashes)
        (folder / "about.json").write_text(json.dumps({"shape": shape, "skipped": bad}))

    def complete(folder: Path) -> bool:
        about = json.loads((folder / "about.json").read_text())
        size = (folder / "images").stat().st_size
        hashed = len(np.load(folder / "hashes.npy")) == len(dataset)
        return hashed and size == len(dataset) * math.prod(about["shape"] or [0])

    folder = cached(key, write, cache_dir, complete)
    about = json.loads((folder / "about.json").read_text())
    good = decodable(dataset, about["skipped"], on_bad_image)
    array = np.memmap(folder / "images", np.uint8, mode="c", shape=(len(dataset), *about["shape"]))
    images, hashes = torch.from_numpy(array), np.load(folder / "hashes.npy")
    if good is not None:
        images, dataset, hashes = images[torch.from_numpy(good)], dataset.select(good), hashes[good]
    return ImageTensors(images, dataset, hashes, key, about["skipped"])


def _in_place(decoded: Decoded, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of `count` rows, black where an image does not decode."""
    if len(decoded.positions) == count:
        return np.ascontiguousarray(decoded.pixels)
    pixels = np.zeros((count, *shape), np.uint8)
    if decoded.pixels is not None:
        pixels[decoded.positions] = decoded.pixels
    return pixels


def decodable(dataset: Dataset, skipped: list[dict], on_bad_image: str) -> np.ndarray | None:
    """The rows without those that do not decode, or None where all do.

    Raises:
        UserError: some do not decode and are not to be skipped, or none decodes.
    """
    if skipped and on_bad_image == "error":
        listed = "\n".join(f"  - {bad['file']}: {bad['reason']}" for bad in skipped[:10])
        raise UserError(
            f"{len(skipped)} of {len(dataset)} images do not decode:\n{listed}\n"
            "fix or remove them, or leave them out with --on_bad_image skip"
        )
    if len(skipped) == len(dataset):
        raise UserError(f"none of the {len(dataset)} images decodes: {skipped[0]['file']}: {skipped[0]['reason']}")
    if not skipped:
        return None
    first = skipped[0]["file"]
    logger.warning("of %d images %d do not decode, and are left out; the first: %s", len(dataset), len(skipped), first)
    return np.setdiff1d(np.arange(len(dataset)), [bad["row"] for bad in skipped])
