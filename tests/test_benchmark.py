"""recipes/benchmark.py on a few generated images: every row runs, is shown and is stored. No time is asserted."""

import gzip
import importlib
import json
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import REPO, load_recipe_script

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
    "linear_probe": ["body", "computed", "cached"],
    "default_run": ["launch"],
}
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def benchmark(monkeypatch):
    """The script."""
    timing = importlib.import_module("benchmarks.timing")
    # Collecting all that pytest holds before every measurement would take longer than the rest.
    monkeypatch.setattr(timing, "gc", SimpleNamespace(collect=lambda: 0))
    return load_recipe_script("benchmark")


@pytest.fixture
def mnist(tmp_path) -> Path:
    """MNIST's four files with images that are easy to learn: noise, and a bright bar at a place for each label."""
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
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_CLASSES}))
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": rng.integers(0, 256, (40, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(40)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


@pytest.mark.slow
def test_every_row_is_measured_shown_and_stored(benchmark, mnist, cifar, tmp_path, capsys):
    output = tmp_path / "results"
    limits = ["--images", "64", "--steps", "1", "--rounds", "1"]
    benchmark.main([*limits, "--mnist_dir", str(mnist), "--cifar_dir", str(cifar), "--output", str(output)])
    shown = capsys.readouterr().out
    records = {path.stem: json.loads(path.read_text()) for path in output.iterdir()}
    assert {name: list(record["rounds"]) for name, record in records.items()} == SIDES
    for name, record in records.items():
        assert record["limits"] == {"rounds": 1, "images": 64, "steps": 1}
        assert {"versions", "commit", "cpu", "cpu_count", "threads", "gpus", "load"} <= record["environment"].keys()
        assert record["command"] == f"python recipes/benchmark.py --rows {name}"
        assert f"\n{name}: {record['what']}" in shown
        for side, (single,) in record["rounds"].items():
            number = record["numbers"][side]
            assert number == {"values": [single[record["measure"]]], "median": single[record["measure"]], "n": 1}
            assert number["median"] > 0
        for goal in record["goals"]:
            assert goal.keys() == {"what", "value", "target", "met"}
            assert goal["value"] > 0
            assert f"  {goal['what']} = " in shown
    assert [goal["target"] for goal in records["mnist_mlp"]["goals"]] == [">= 6", "<= 1.35"]

    for name in ("mnist_mlp", "mnist_convnet"):
        runs = {side: rounds[0] for side, rounds in records[name]["rounds"].items()}
        assert all(run["loss"] < run["loss_before"] and 0 <= run["accuracy"] <= 1 for run in runs.values())
        # Not stock: the Trainer clips gradients by default, and they are large in the first steps.
        losses = [run["loss"] for side, run in runs.items() if side != "stock"]
        assert max(losses) - min(losses) < 0.5, f"the sides do not do the same training: {losses}"
    (grown,) = records["memory"]["rounds"]["ftkit"]
    assert grown["images"] == 64
    assert grown["gigabytes"] == pytest.approx(grown["peak"] - grown["before"])
    assert grown["allowed"] > importlib.import_module("benchmarks.memory").TO_SPARE
    probe = {side: rounds[0] for side, rounds in records["linear_probe"]["rounds"].items()}
    assert all(0 < run["stage_seconds"] < run["seconds"] for run in probe.values())


def test_a_row_without_data_fails_alone(benchmark, tmp_path, capsys, refused):
    output = tmp_path / "results"
    arguments = ["--rows", "mnist_mlp,augmentation", "--images", "8", "--mnist_dir", str(tmp_path / "nothing")]
    with refused("not measured", "mnist_mlp"):
        benchmark.main([*arguments, "--output", str(output)])
    assert [path.name for path in output.iterdir()] == ["augmentation.json"]
    record = json.loads((output / "augmentation.json").read_text())
    assert len(record["rounds"]["ftkit"]) == record["numbers"]["ftkit"]["n"] == 3
    shown = capsys.readouterr().out
    assert "mnist_mlp: FAILED: UserError: data_dir" in shown and "does not exist" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--rows", "mnist_loder,memory"],
            ["'mnist_loder' is not one of mnist_loader, ", "did you mean 'mnist_loader'"],
        ),
        (["--rounds", "0"], ["--rounds: '0' is not a positive integer"]),
        (["--images", "-5"], ["--images: '-5' is not a positive integer"]),
    ],
)
def test_a_mistake_in_the_options_is_refused(benchmark, refused, arguments, words):
    with refused(*words):
        benchmark.parse_arguments(arguments)


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [("a / b >= 40", 50.0, True), ("b / a < 0.02", 0.02, False), ("a <= 100", 100.0, True)],
)
def test_a_goal_is_met_by_medians(benchmark, goal, value, met):
    judged = importlib.import_module("benchmarks.timing").judge(goal, {"a": 100.0, "b": 2.0})
    assert (judged["value"], judged["met"]) == (value, met)


def test_every_row_is_a_module_and_has_a_result(benchmark):
    assert set(benchmark.ROWS) == {path.stem for path in (REPO / "recipes/results/benchmarks").glob("*.json")}
    for name in benchmark.ROWS:
        assert callable(importlib.import_module(f"benchmarks.{name}").row)
