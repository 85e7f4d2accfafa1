"""The stream engine: worker processes decode images when a batch needs them."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ftkit.compat.datasets import fingerprint
from ftkit.data.augmentation.augment import random_bits
from ftkit.data.feeding.tensors import Images, decodable, gone
from ftkit.data.pixels.cache import cached
from ftkit.data.pixels.decoding import Decoder
from ftkit.data.pixels.images import BAD_IMAGE_ERRORS, open_image, to_mode
from ftkit.data.pixels.keys import DECODING, cache_key
from ftkit.data.pixels.normalize import geometry_key, histogram
from ftkit.errors import UserError

_VERSION = 4  # the cache's version: raise it when decoding changes


class StreamedImages(Images):
    """A split whose images are decoded batch by batch, from files or a memory-mapped table.

    All images are decoded once beforehand, in all processes, so that a broken image is found now and not in the middle
    of training; it is left out.

    Args:
        dataset: a dataset with the columns `image`, `label`, `index`.
        processor: the image processor saved with the model; it resizes and crops.
        channels: 1 or 3.
        cache_dir: the folder that keeps the result of this check, see `ftkit.data.feeding.tensors.image_tensors`.
    """

    engine = "stream"

    def __init__(self, dataset: Dataset, processor: Any, channels: int, cache_dir: str | None = None):
        parts = _VERSION, fingerprint(dataset), geometry_key(processor), channels
        key = cache_key(*parts, computed_by=DECODING)

        def write(folder: Path) -> None:
            bad: list[dict[str, Any]] = []
            kinds: Counter[str] = Counter()
            counts, shape, hashes = 0, None, np.zeros(len(dataset), np.uint64)
            looked = decoder.over_all_rows(_FirstLook(decoder), "checking images")
            for rows, look in looked:
                counts, bad, kinds = counts + look.histogram, bad + look.bad, kinds + look.kinds
                shape, hashes[rows.start : rows.stop] = shape or look.shape, look.hashes
            np.save(folder / "hashes.npy", hashes)
            about = {"shape": shape, "skipped": bad, "kinds": kinds, "histogram": np.asarray(counts).tolist()}
            (folder / "about.json").write_text(json.dumps(about))

        decoder = Decoder(dataset, processor, channels)
        folder = cached(f"stream-{key}", write, cache_dir)
        about, hashes = json.loads((folder / "about.json").read_text()), np.load(folder / "hashes.npy")
        good = decodable(dataset, about["skipped"])
        if good is not None:
            dataset, hashes = dataset.select(good), hashes[good]
            decoder = Decoder(dataset, processor, channels)
        super().__init__(dataset, hashes, key, about["skipped"], tuple(about["shape"] or (channels, 0, 0)))
        self.kinds = about["kinds"]
        self.decoder, self.counts = decoder, np.array(about["histogram"])
        self.transform: Callable[[Image.Image], torch.Tensor] | None = None

    def transform_with(self, options: dict[str, Any], seed: int) -> None:
        """From now on apply timm's training transform to every image, instead of the processor's geometry.

        Args:
            options: options of `timm.data.create_transform`, such as `auto_augment: rand-m9-mstd0.5-inc1`.
            seed: the seed, see `Images`; each stage sets its own.

        Raises:
            UserError: timm rejects an option.
        """
        from timm.data import create_transform  # late: few runs need it

        try:
            # timm's prefetcher wants uint8 tensors, which is what ftkit's batches are.
            transform = create_transform(self.shape, is_training=True, use_prefetcher=True, **options)
        except (ValueError, TypeError, AssertionError, KeyError) as error:
            raise UserError(f"image_transform: {options}: timm says: {error!r}") from error
        self.transform, self.seed = transform, seed

    def pixels(self, rows: torch.Tensor, epoch: int = 0) -> torch.Tensor:
        if self.transform is None:
            decoded = self.decoder(rows.tolist())
            if decoded.bad:
                raise gone(decoded.bad[0]["file"], decoded.bad[0]["reason"])
            return torch.from_numpy(np.ascontiguousarray(decoded.pixels))
        seeds = random_bits(self.seed, epoch, self.index[rows], "transform", 1).flatten().tolist()
        files = self.decoder.files[rows.tolist()]["image"]
        with _generators_kept():
            return torch.stack([self._transformed(self.transform, *pair) for pair in zip(files, seeds, strict=True)])

    def _transformed(self, transform: Callable[[Image.Image], torch.Tensor], file: dict, seed: int) -> torch.Tensor:
        """One image; the transform's random numbers depend only on `seed`."""
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed the devices
        try:
            image = to_mode(open_image(file), 3)
        except BAD_IMAGE_ERRORS as error:
            raise gone(file["path"], error) from error
        pixels = transform(image)
        return pixels if self.shape[0] == 3 else pixels[:1]

    def histogram(self) -> np.ndarray:
        return self.counts


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the global generators after the block: without workers, dropout draws from one of them."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class _Look(NamedTuple):
    """What a first look at some rows finds: an image's shape, counts of the values, and the rest as in `Decoded`."""

    shape: list[int] | None
    histogram: np.ndarray | int
    bad: list[dict[str, Any]]
    hashes: np.ndarray
    kinds: Counter[str]


class _FirstLook:
    """Looks at rows; `hashes` of those that do not decode are 0."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def __call__(self, rows: range) -> _Look:
        decoded, hashes = self.decoder(rows), np.zeros(len(rows), np.uint64)
        hashes[decoded.positions] = decoded.hashes
        found = decoded.bad, hashes, decoded.kinds
        if decoded.pixels is None:
            return _Look(None, 0, *found)
        return _Look(list(decoded.pixels.shape[1:]), histogram(decoded.pixels), *found)
