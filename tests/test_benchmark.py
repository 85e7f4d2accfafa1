"""recipes/benchmark.py on a few generated images: every side trains, and all of it is told and stored. No timing."""

import gzip
import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ftkit.errors import UserError

RECIPE = Path(__file__).parents[1] / "recipes" / "benchmark.py"
SIDES = ["stock", "tutorial", "raw", "ftkit"]


@pytest.fixture
def idx_folder(tmp_path) -> Path:
    """MNIST's four files with images that are easy to learn: noise, and a bright bar where the label says."""
    folder, rng = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 300), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 64, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] += 180
        for what, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def test_all_sides_train_and_are_recorded(idx_folder, tmp_path):
    output = tmp_path / "benchmark.json"
    arguments = ["--data_dir", str(idx_folder), "--images", "256", "--rounds", "1", "--output", str(output)]
    done = subprocess.run([sys.executable, str(RECIPE), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.split()[:1]}
    assert len(table["side"]) == 9  # `each round` and `/ ftkit` are two words each
    assert all(len(table[name]) == 7 for name in SIDES)
    assert table["ftkit"][4] == "1.00"

    record = json.loads(output.read_text())
    assert (record["images"], record["batch_size"], record["rounds"]) == (256, 64, 1)
    assert {"versions", "cpu", "cpu_count", "threads", "gpus", "device", "load"} <= record["environment"].keys()
    assert list(record["sides"]) == SIDES
    for result in record["sides"].values():
        assert result.keys() == {"median_seconds", "images_per_second", "ratio_to_ftkit", "runs"}
        (single,) = result["runs"]
        assert result["median_seconds"] == single["seconds"] > 0
        assert result["images_per_second"] == pytest.approx(256 / single["seconds"])
        assert single["loss"] < single["loss_before"]
        assert 0 <= single["accuracy"] <= 1
    # Not stock: the Trainer's default clips the gradients, which are large in the first steps.
    losses = [record["sides"][name]["runs"][0]["loss"] for name in SIDES if name != "stock"]
    assert max(losses) - min(losses) < 0.5, f"the sides do not do the same training: {losses}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sides", "stok,raw"], "did you mean 'stock'"),
        (["--rounds", "0"], "--rounds: 0 must be at least 1"),
    ],
)
def test_a_mistake_is_named(arguments, message):
    spec = importlib.util.spec_from_file_location("benchmark", RECIPE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    with pytest.raises(UserError, match=message):
        benchmark.parse_arguments(arguments)
