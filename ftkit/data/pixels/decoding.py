"""Decoding: rows of a dataset -> uint8 pixels, in one process per core."""

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
from tqdm.auto import tqdm

from ftkit.data.pixels.images import BAD_IMAGE_ERRORS, encoded, file_bytes, to_mode
from ftkit.data.pixels.kinds import kinds_of
from ftkit.data.pixels.normalize import PixelGeometry
from ftkit.tasks.columns import column

_CHUNK = 128  # images per unit of work
_WORTH_PROCESSES = 2000  # images
_FIRST = 64  # images to try for the first two


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

    def __call__(self, rows: Sequence[int]) -> Decoded:
        """Decode these rows."""
        positions, images, hashes, bad = [], [], [], []
        kinds: Counter[str] = Counter()
        for position, file in enumerate(self.files[rows]["image"]):
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
            except BAD_IMAGE_ERRORS as error:
                row = int(rows[position])
                name = (file and file["path"]) or f"row {self.index[row]}"
                reason = str(error) or type(error).__name__
                if isinstance(error, UnidentifiedImageError):
                    reason = "not an image of a known format"  # PIL's message contains a memory address
                about = {"file": name, "xxh3_64": None if found is None else f"{found:016x}", "reason": reason}
                bad.append({"row": row, "index": int(self.index[row]), **about})
        pixels = self.geometry(images) if images else None
        return Decoded(positions, pixels, np.array(hashes, np.uint64), bad, kinds)


def first_images(dataset: Dataset, processor: Any, channels: int) -> torch.Tensor | None:
    """The first two images that decode, one of them twice if there is no other: uint8 (2, C, H, W).

    Args:
        dataset, processor, channels: see `Decoder`.

    Returns:
        None if none of the first 64 decodes.
    """
    decode, found = Decoder(dataset, processor, channels), None
    for row in range(min(_FIRST, len(dataset))):
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
    """Call `work` on the rows 0 … count - 1, chunk by chunk, in processes if it pays; a progress bar shows `what`.

    Args:
        chunk: rows per call.
        worth_processes: the least number of rows to start processes for.

    Yields:
        The rows of each chunk, in order, and the result of `work`.
    """
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    workers = min(cores(), len(chunks)) if count >= worth_processes else 0
    # Its own generator: later random numbers must not depend on whether the cache existed.
    own = torch.Generator()
    results = DataLoader(
        _Chunks(work, chunks), batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=own
    )
    gc.freeze()  # so that garbage collection in the workers skips all objects of the libraries
    try:
        with tqdm(total=count, desc=what, unit="image", disable=None if workers else True, leave=False) as progress:
            for rows, result in zip(chunks, results, strict=True):
                progress.update(len(rows))
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
