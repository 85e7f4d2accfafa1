"""recipes/benchmark.py on a few generated images: every row runs, and all of it is told and stored. No timing."""

import gzip
import json
import pickle
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import load_recipe_script

SIDES = {
    "mnist_loader": ["stock", "ftkit"],
    "cifar_loader": ["stock", "ftkit"],
    "mnist_mlp": ["stock", "tutorial", "raw", "ftkit"],
    "mnist_convnet": ["raw", "ftkit"],
    "cifar_resnet18": ["stock_loader", "loader", "step"],
    "augmentation": ["torchvision", "ftkit"],
    "cache": ["mnist", "mnist_pil", "mnist_again", "cifar10", "cifar10_pil", "cifar10_again"],
    "memory": ["ftkit", "allowed"],
    "stream": ["stream", "tensor", "decoding", "resizing"],
}


@pytest.fixture
def benchmark(monkeypatch):
    """The script, known to the processes of a pool by its name."""
    module = load_recipe_script("benchmark")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # Before every measurement it would look through all that pytest holds, which takes longer than the rest.
    monkeypatch.setattr(module, "gc", SimpleNamespace(collect=lambda: 0))
    return module


@pytest.fixture
def mnist(tmp_path) -> Path:
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


@pytest.fixture
def cifar(tmp_path) -> Path:
    """CIFAR-10's python batches, of noise."""
    folder, rng = tmp_path / "cifar10", np.random.default_rng(0)
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": rng.integers(0, 256, (40, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(40)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


@pytest.mark.slow
def test_every_row_is_measured_told_and_stored(benchmark, mnist, cifar, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    limits = ["--images", "64", "--steps", "1", "--rounds", "1"]
    benchmark.main([*limits, "--mnist_dir", str(mnist), "--cifar_dir", str(cifar), "--output", str(output)])
    told, record = capsys.readouterr().out, json.loads(output.read_text())
    assert (record["images"], record["steps"], record["rounds"]) == (64, 1, 1)
    assert {"versions", "cpu", "cpu_count", "threads", "gpus", "device", "load"} <= record["environment"].keys()
    assert {name: list(row["sides"]) for name, row in record["rows"].items()} == SIDES
    for name, row in record["rows"].items():
        assert row.keys() == {"what", "measure", "sides", "goals", "load"}
        assert f"\n{name}: {row['what']}" in told
        for side in row["sides"].values():
            (single,) = side["runs"]
            assert side["median"] == single[row["measure"]] > 0
        for goal in row["goals"]:
            assert goal.keys() == {"what", "value", "target", "met"}
            assert goal["value"] > 0
            assert f"  {goal['what']} = " in told
    assert [goal["target"] for goal in record["rows"]["mnist_mlp"]["goals"]] == [">= 6", "<= 1.35"]

    for name in ("mnist_mlp", "mnist_convnet"):
        runs = {side: result["runs"][0] for side, result in record["rows"][name]["sides"].items()}
        assert all(run["loss"] < run["loss_before"] and 0 <= run["accuracy"] <= 1 for run in runs.values())
        # Not stock: the Trainer's default clips the gradients, which are large in the first steps.
        losses = [run["loss"] for side, run in runs.items() if side != "stock"]
        assert max(losses) - min(losses) < 0.5, f"the sides do not do the same training: {losses}"
    (grown,) = record["rows"]["memory"]["sides"]["ftkit"]["runs"]
    assert grown["images"] == 64
    assert grown["gigabytes"] == pytest.approx(grown["peak"] - grown["before"])
    assert grown["allowed"] > benchmark.MEMORY_TO_SPARE


def test_a_row_without_data_leaves_the_others(benchmark, tmp_path, capsys, refused):
    output = tmp_path / "benchmark.json"
    arguments = ["--rows", "mnist_mlp,augmentation", "--images", "8", "--mnist_dir", str(tmp_path / "nothing")]
    with refused("not measured", "mnist_mlp"):
        benchmark.main([*arguments, "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert "does not exist" in rows["mnist_mlp"]["error"]
    assert len(rows["augmentation"]["sides"]["ftkit"]["runs"]) == 3
    assert "mnist_mlp: FAILED: UserError: data_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--rows", "mnist_loder,memory"],
            ["'mnist_loder' is not one of mnist_loader, ", "did you mean 'mnist_loader'"],
        ),
        (["--rounds", "0"], ["--rounds: 0 must be at least 1"]),
        (["--images", "-5"], ["--images: -5 must be at least 1"]),
    ],
)
def test_a_mistake_is_named(benchmark, refused, arguments, words):
    with refused(*words):
        benchmark.parse_arguments(arguments)


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [("a / b >= 40", 50.0, True), ("b / a < 0.02", 0.02, False), ("a <= 100", 100.0, True)],
)
def test_a_goal_is_judged_by_medians(benchmark, goal, value, met):
    judged = benchmark.judge(goal, {"a": 100.0, "b": 2.0})
    assert (judged["value"], judged["met"]) == (value, met)
