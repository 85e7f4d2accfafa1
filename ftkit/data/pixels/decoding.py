"""Decoding: rows of a dataset -> uint8 pixels, in one process per core."""

import functools
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from datasets import Dataset
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ftkit.console import ProgressLine
from ftkit.data.pixels.images import BAD_IMAGE_ERRORS, encoded, file_bytes, to_mode
from ftkit.data.pixels.kinds import kinds_of
from ftkit.data.pixels.normalize import PixelGeometry
from ftkit.errors import short_of_memory
from ftkit.memory import available_memory
from ftkit.tasks.columns import column

_CHUNK = 128  # the most images per unit of work
_WORTH_PROCESSES = 2000  # images
_TOGETHER = 1 << 25  # bytes of files, or of pixels, that are in memory together: about one phone photograph
_PROCESS = 1 << 29  # bytes that a process may take while it decodes photographs
_TRIED = 64  # images, of which one must decode for the size to be known


class Decoded(NamedTuple):
    """The result of decoding some rows.

    Attributes:
        positions: the positions, among the rows, of the images that decode.
        pixels: uint8 (n, C, H, W), the pixels of these images; None if n is 0.
        hashes: uint64 (n,), the XXH3 hashes of their files' bytes.
        bad: the images that do not decode: dictionaries of `row`, `index`, `file`, `xxh3_64` (the hash of the file in
            hexadecimal; None if it cannot be read) and `reason`.
        kinds: the number of images of each kind, see `ftkit.data.pixels.kinds.KINDS`.
    """

    positions: list[int]
    pixels: np.ndarray | None
    hashes: np.ndarray
    bad: list[dict[str, Any]]
    kinds: Counter[str]


class Decoder:
    """Decodes rows of a split to the pixels that the model's image processor normalises.

    Args:
        dataset: a dataset with the columns `image` and `index`.
        processor: the image processor saved with the model; it resizes and crops.
        channels: 1 or 3.
    """

    def __init__(self, dataset: Dataset, processor: Any, channels: int):
        self.files, self.index = encoded(dataset), column(dataset, "index")
        self.geometry, self.channels = PixelGeometry(processor), channels
        table = self.files.data
        self._read_together = max(_TOGETHER * max(table.num_rows, 1) // max(table.nbytes, 1), 1)

    def __call__(self, rows: Sequence[int]) -> Decoded:
        """Decode these rows; of large images, only a few are in memory before they are resized."""
        positions, images, hashes, bad = [], [], [], []
        resized: list[np.ndarray] = []
        kinds: Counter[str] = Counter()
        held = 0  # bytes of the images that are not resized yet
        for position, file in self._read(rows):
            found = None
            try:
                content = file_bytes(file)
                found = xxhash.xxh3_64_intdigest(content)
                image = Image.open(BytesIO(content))
                shown = to_mode(image, self.channels)
                kinds.update(kinds_of(image, shown))
                images.append(shown)
                hashes.append(found)
                positions.append(position)
                held += images[-1].width * images[-1].height * self.channels
            except BAD_IMAGE_ERRORS as error:
                if short_of_memory(error) is not None:
                    raise
                row = int(rows[position])
                name = (file and file["path"]) or f"row {self.index[row]}"
                reason = str(error) or type(error).__name__
                if isinstance(error, UnidentifiedImageError):
                    reason = "not an image of a known format"  # PIL's message contains a memory address
                about = {"file": name, "xxh3_64": None if found is None else f"{found:016x}", "reason": reason}
                bad.append({"row": row, "index": int(self.index[row]), **about})
            if held >= _TOGETHER:
                resized.append(self.geometry(images))
                images, held = [], 0
        if images:
            resized.append(self.geometry(images))
        pixels = np.concatenate(resized) if len(resized) > 1 else next(iter(resized), None)
        return Decoded(positions, pixels, np.array(hashes, np.uint64), bad, kinds)

    def _read(self, rows: Sequence[int]) -> Iterator[tuple[int, dict | None]]:
        """The position of each row and its file, which may be embedded in the table."""
        for start in range(0, len(rows), self._read_together):
            yield from enumerate(self.files[rows[start : start + self._read_together]]["image"], start)

    @functools.cached_property
    def bytes_of_one(self) -> int:
        """The bytes of a decoded image, from the first one that decodes; 0 if none of the first 64 does."""
        tried = (self([row]).pixels for row in range(min(_TRIED, len(self.files))))
        return next((pixels.nbytes for pixels in tried if pixels is not None), 0)

    def over_all_rows(self, work: Callable[[range], Any], what: str) -> Iterator[tuple[range, Any]]:
        """`over_all_rows` of this split, in chunks whose decoded pixels are at most 64 MB, or one image."""
        chunk = max(min(_CHUNK, 2 * _TOGETHER // max(self.bytes_of_one, 1)), 1)
        return over_all_rows(work, len(self.files), what, chunk)


def first_images(dataset: Dataset, processor: Any, channels: int) -> torch.Tensor | None:
    """The first two images that decode, one of them twice if there is no other: uint8 (2, C, H, W).

    Args:
        dataset, processor, channels: see `Decoder`.

    Returns:
        None if none of the first 64 decodes.
    """
    decode, found = Decoder(dataset, processor, channels), None
    for row in range(min(_TRIED, len(dataset))):
        if (pixels := decode([row]).pixels) is not None:
            if found is not None:
                return torch.from_numpy(np.concatenate([found, pixels]))
            found = pixels
    return None if found is None else torch.from_numpy(np.concatenate([found, found]))


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_all_rows(
    work: Callable[[range], Any], count: int, what: str, chunk: int = _CHUNK, worth_processes: int = _WORTH_PROCESSES
) -> Iterator[tuple[range, Any]]:
    """Call `work` on the rows 0 … count - 1, chunk by chunk, in processes if it pays; logs the progress.

    Args:
        what: the step, for the progress line.
        chunk: rows per call.
        worth_processes: the least number of rows to start processes for.

    Yields:
        The rows of each chunk, in order, and the result of `work`.
    """
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    workers = min(cores(), len(chunks), available_memory() // _PROCESS) if count >= worth_processes else 0
    # Its own generator: later random numbers must not depend on whether the cache existed.
    own = torch.Generator()
    results = DataLoader(
        _Chunks(work, chunks), batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=own
    )
    gc.freeze()  # so that garbage collection in the workers skips all objects of the libraries
    try:
        with ProgressLine(what, count) as progress:
            for rows, result in zip(chunks, results, strict=True):
                progress.add(len(rows))
                yield rows, result
    finally:
        gc.unfreeze()


class _Chunks(TorchDataset):
    def __init__(self, work: Callable[[range], Any], chunks: list[range]):
        self.work, self.chunks = work, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Any:
        return self.work(self.chunks[number])


def _as_it_is(result: Any) -> Any:
    return result
