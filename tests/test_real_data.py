"""The recipes on the real data sets, where `FTKIT_DATA_DIR` holds them."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import REPO, finetune, real_data

from ftkit.config import DataArguments
from ftkit.data.feeding.tensors import image_tensors
from ftkit.data.pixels.normalize import channel_statistics
from ftkit.data.sources.load import load_data

pytestmark = pytest.mark.slow


def test_mnist_mlp_learns():
    real_data("mnist")  # found through FTKIT_DATA_DIR, as a user's would be
    recipe = REPO / "recipes" / "mnist" / "mlp.yaml"
    run = finetune(Path("mnist"), "--config", recipe, "--num_train_epochs", 1)
    assert json.loads((run / "run.json").read_text())["test"] == pytest.approx(
        {"n": 10_000, "accuracy": 0.96, "macro_f1": 0.96}, abs=0.02
    )


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [("mnist", (28, 28), [0.1307]), ("cifar10", (32, 32), [0.4914, 0.4822, 0.4465])],
)
def test_the_published_statistics(name, shape, mean):
    """All of train, decoded, has the mean that is published."""
    from transformers import ViTImageProcessor

    data = load_data(DataArguments(data_dir=str(real_data(name))))
    assert {split: len(rows) for split, rows in data.items()}["test"] == 10_000
    processor = ViTImageProcessor(size={"height": shape[0], "width": shape[1]})
    parts = [image_tensors(data[split], processor, len(mean)) for split in ("train", "validation")]
    sums = sum(len(part) * np.array(channel_statistics(part.histogram())[0]) for part in parts)
    np.testing.assert_allclose(sums / sum(map(len, parts)), mean, atol=1e-4)


def test_cifar10_resnet_takes_a_step():
    folder = real_data("cifar10")
    recipe = REPO / "recipes" / "cifar10" / "resnet18_timm.yaml"
    run = finetune(Path("cifar"), "--config", recipe, "--data_dir", folder, "--max_train_samples", 256,
                   "--num_train_epochs", 1, "--model", "timm/test_resnet")  # fmt: skip
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["label_names"][:3] == ["airplane", "automobile", "bird"]
