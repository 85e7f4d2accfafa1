"""The images of a benchmark, in the form that each side reads."""

import functools
import io
import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage

from ftkit.config.configuration import Config
from ftkit.data.feeding.tensors import Images, ImageTensors, image_tensors
from ftkit.data.pixels.images import ImageInfo, describe_images, encoded, open_image
from ftkit.data.pixels.normalize import Normalize8Bit, normalizer
from ftkit.data.sources.load import load_data
from ftkit.models.classifier import Classifier
from ftkit.owners import parse_config
from ftkit.tasks import task_of
from ftkit.tasks.columns import column

HIDDEN, LEARNING_RATE, MOMENTUM = 512, 0.01, 0.5
CROP_AND_FLIP = ["random_crop", "flip"]
# The arguments that every side trains with; `Trainer` and ftkit share their names.
TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "optim": "sgd",
    "optim_args": f"momentum={MOMENTUM}",
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "disable_tqdm": True,
}


@dataclass(eq=False)  # so that it can be the key of a cache
class Bench:
    """The command line, a temporary folder, and a stack that is closed after the row."""

    args: Namespace
    folder: Path
    stack: ExitStack


class Setup(NamedTuple):
    """The input of every side: the same images, in the form that each expects."""

    config: Config
    rows: Dataset
    info: ImageInfo
    images: Images
    processor: Any

    @property
    def batch_size(self) -> int:
        return self.config.training.per_device_train_batch_size

    @property
    def device(self) -> torch.device:
        return self.config.training.device

    @property
    def tensors(self) -> ImageTensors:
        """The images of an engine that holds them all."""
        assert isinstance(self.images, ImageTensors)
        return self.images

    def __str__(self) -> str:
        return f"{len(self.images):,} images in batches of {self.batch_size}"

    def first(self, count: int) -> "Setup":
        """The setup with only the first `count` images."""
        rows = self.rows.select(range(min(count, len(self.rows))))
        return self._replace(
            rows=rows, images=ImageTensors(self.tensors.images[: len(rows)], rows, self.images.hashes, "", [])
        )

    def model(self) -> Any:
        """ftkit's model with random weights."""
        return Classifier.build(self.config.model, self.images.task, self.info, pretrained=False).model

    def normalizer(self) -> Normalize8Bit:
        """From uint8 to what the models take."""
        return normalizer(self.processor, self.info.channels)


def read_config(bench: Bench, dataset: str, **settings: Any) -> Config:
    """A configuration, read as that of any recipe; run and cache go to the benchmark's folder."""
    settings = {
        "dataset": dataset,
        "data_dir": {"mnist": bench.args.mnist_dir, "cifar10": bench.args.cifar_dir}.get(dataset),
        "max_grad_norm": 0,
        "eval_strategy": "no",
        "cache_dir": str(bench.folder / "cache"),
        "output_dir": str(bench.folder / "run"),
        **TRAINING,
        **settings,
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return parse_config([f"--{key}={text}" for key, text in texts.items() if text != "null"])


@functools.cache  # one object for all rows of the benchmark, so that `as_png` encodes it once
def read_images(bench: Bench, dataset: str, test: bool = False) -> Dataset:
    """The first images of train and validation, and of test if asked for."""
    splits = load_data(read_config(bench, dataset).data)
    rows = concatenate_datasets([splits[name] for name in ("train", "validation", "test")[: 3 if test else 2]])
    return rows.select(range(min(bench.args.images or len(rows), len(rows))))


def make_setup(
    bench: Bench,
    dataset: str,
    batch_size: int,
    rows: Dataset | None = None,
    engine: Callable[..., Images] = image_tensors,
    **settings: Any,
) -> Setup:
    """Prepare images for ftkit, once, as a run does: `rows`, or the dataset's."""
    config = read_config(bench, dataset, per_device_train_batch_size=batch_size, **settings)
    rows = read_images(bench, dataset) if rows is None else rows
    info = describe_images(rows)
    classifier = Classifier.build(config.model, task_of(rows.features), info, pretrained=False)
    images = engine(rows, classifier.processor, info.channels, cache_dir=config.data.cache_dir)
    classifier.fit(images)
    return Setup(config, rows, info, images, classifier.processor)


def with_images(rows: Dataset, images: list[dict] | list[str]) -> Dataset:
    """The labels of `rows`, with other images in a `datasets` image column."""
    features = Features(image=Image(), label=rows.features["label"], index=Value("int64"))
    columns = {"image": images, "label": column(rows, "label"), "index": np.arange(len(rows))}
    return Dataset.from_dict(columns, features)


@functools.cache
def as_png(rows: Dataset) -> Dataset:
    """The images as PNG files in the image column, as the Hub stores MNIST and CIFAR-10."""
    files = []
    for file in encoded(rows)[:]["image"]:
        buffer = io.BytesIO()
        open_image(file).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    return with_images(rows, files)


def as_photos(rows: Dataset, folder: Path) -> Dataset:
    """JPEG files of about 400 x 300 pixels: the images enlarged, with noise, so that decoding is realistic work."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    for number, image in enumerate(rows["image"]):
        size = int(rng.integers(380, 421)), int(rng.integers(285, 316))
        large = np.asarray(image.convert("RGB").resize(size, PILImage.Resampling.BICUBIC)).astype(np.int16)
        noisy = (large + rng.integers(-12, 13, large.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number:06}.jpg"))
        PILImage.fromarray(noisy).save(paths[-1], quality=90)
    return with_images(rows, paths)
