"""Small generated data: each picture has a single grey value, which identifies it."""

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars
from PIL import Image as PILImage

from ftkit.config import DataArguments
from ftkit.data.sources.load import load_data

disable_progress_bars()


def _picture(value: int, size=(4, 6)) -> PILImage.Image:
    return PILImage.fromarray(np.full(size, value, np.uint8))


@pytest.fixture
def picture():
    """A grey image (height 4, width 6) of a single value."""
    return _picture


@pytest.fixture
def load():
    """`load_data` of a folder or file, with more `DataArguments`."""

    def load(path: Path | None = None, **options) -> DatasetDict:
        return load_data(DataArguments(data_dir=str(path) if path else None, **options))

    return load


@pytest.fixture
def picture_folder(tmp_path):
    """Write images by folder, `{"train/cat": 3, …}`, and return the root. Each has its own value, from 0."""

    def write(counts: dict[str, int], root: str = "pictures") -> Path:
        value = 0
        (tmp_path / root).mkdir()
        for name, count in counts.items():
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _picture(value).save(tmp_path / root / name / f"{i}.png")
                value += 1
        return tmp_path / root

    return write


@pytest.fixture
def labelled():
    """A `Dataset` of grey images 0, 1, 2, … with labels of any feature type and any column names."""

    def make(labels: list, feature=None, image="image", label="label", **more) -> Dataset:
        feature = feature or ClassLabel(names=["a", "b"])
        extra = {name: values for name, (values, _) in more.items()}
        features = Features(
            {image: Image(), label: feature} | {name: feature for name, (_, feature) in more.items()},
        )
        return Dataset.from_dict(
            {image: [_picture(i) for i in range(len(labels))], label: labels, **extra}, features=features
        )

    return make


@pytest.fixture
def saved(tmp_path):
    """`save_to_disk` of splits; returns the folder."""

    def save(**splits: Dataset) -> Path:
        shards = dict.fromkeys(splits, 1)  # not every version can choose a number for an empty split
        DatasetDict(splits).save_to_disk(tmp_path / "saved", num_shards=shards)
        return tmp_path / "saved"

    return save


@pytest.fixture
def labels_of():
    """The label of each row, by name."""
    return lambda dataset: [dataset.features["label"].names[i] for i in dataset["label"]]


@pytest.fixture
def values_of():
    """The grey value of each image."""
    return lambda dataset: [int(np.asarray(image).flat[0]) for image in dataset["image"]]
