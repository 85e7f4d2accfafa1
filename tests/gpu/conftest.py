"""Fixtures of the tests on a GPU, which are skipped without one; their measurements are written as JSON.

    pytest -m gpu -n 4 tests/gpu
    pytest -m gpu tests/gpu/test_speed.py

`FTKIT_DATA_DIR` is a folder with `mnist/`, `hymenoptera/` and `tf_efficientnet_lite0.in1k/`; generated images and
random weights replace missing ones. `FTKIT_GPU_RESULTS` is the JSON file (default: gpu-results.json in the working
folder), to which a second session at the same commit adds; it becomes recipes/results/gpu_<name>.json.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import REPO, finetune

from ftkit.evaluation.report import read_record
from ftkit.training.provenance import environment

RESULTS: dict[str, dict] = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["gpu"] = RESULTS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    RESULTS.update(node.workeroutput["gpu"])


def pytest_terminal_summary(terminalreporter, config):
    if not RESULTS or hasattr(config, "workerinput"):
        return
    terminalreporter.section("measured on the GPU")
    for name, row in RESULTS.items():
        terminalreporter.write_line(f"{name:<32} " + ", ".join(f"{key} {value}" for key, value in row.items()))
    path = Path(os.environ.get("FTKIT_GPU_RESULTS", "gpu-results.json"))
    content = {
        "kind": "gpu",
        "command": "pytest " + " ".join(config.invocation_params.args),
        "what": ", ".join(environment()["gpus"]),
        "failed": [report.nodeid for report in terminalreporter.stats.get("failed", [])],
        "numbers": RESULTS,
        "environment": environment(),
        "date": datetime.date.today().isoformat(),
    }
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["environment"]["commit"] == content["environment"]["commit"]:
            content["command"] = f"{earlier['command']} && {content['command']}"
            content["failed"] = earlier["failed"] + content["failed"]
            content["numbers"] = earlier["numbers"] | RESULTS
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"written to {path}")


@pytest.fixture(autouse=True)
def device_as_new():
    """Start each test with an empty card, and reset torch's switches after it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.fixture
def measured(request):
    """`measured(**numbers)` records a test's numbers in a row with its name."""

    def keep(**numbers):
        RESULTS.setdefault(request.node.name.removeprefix("test_"), {}).update(numbers)

    return keep


@pytest.fixture
def train(tmp_path, measured):
    """`train(*options)` runs the main job in this process, asserts that it ran on the GPU, and records its numbers."""

    def run(*options, folder="run"):
        started = time.monotonic()
        place = finetune(tmp_path / folder, "--cache_dir", CACHE, *options)
        record = read_record(place)
        assert record["device"].startswith("cuda")
        measured(
            seconds=round(time.monotonic() - started, 1),
            accuracy=record["test"]["accuracy"],
            precision=record["precision"],
            images_per_second=[stage["images_per_second"] for stage in record["stages"]],
            gpu_mb=record["peak_memory_mb"]["gpu"],
        )
        return place

    return run


@pytest.fixture
def launch(tmp_path):
    """`launch(config, *options)` runs the real command, as a user does; returns the run's folder."""

    def start(config, *options, folder="run"):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                   REPO / "accelerate_configs" / f"{config}.yaml", "--num_processes", 1,
                   REPO / "recipes" / "finetune.py", *options, "--output_dir", tmp_path / folder]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return tmp_path / folder

    return start


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keep decoded images between the tests."""
    global CACHE
    CACHE = str(tmp_path_factory.mktemp("cache"))


def data(name: str) -> Path | None:
    """A folder of real data, or None."""
    folder = Path(os.environ.get("FTKIT_DATA_DIR", "")) / name
    return folder if os.environ.get("FTKIT_DATA_DIR") and folder.is_dir() else None


@pytest.fixture(scope="session")
def digits28(tmp_path_factory):
    """MNIST, or 22,000 images of noisy stripes in ten directions, as a list of options."""
    if (mnist := data("mnist")) is not None:
        return ["--data_dir", str(mnist)]
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    rng, side = np.random.default_rng(0), np.arange(28) - 13.5
    features = Features(image=ImageFeature(), label=ClassLabel(num_classes=10))

    def split(count):
        labels = rng.integers(0, 10, count)
        waves = [np.sin(side[:, None] * np.cos(a) + side * np.sin(a)) for a in labels * np.pi / 10]
        pixels = [(127 + 60 * wave + rng.normal(0, 40, wave.shape)).clip(0, 255).astype(np.uint8) for wave in waves]
        return Dataset.from_dict({"image": [Image.fromarray(image) for image in pixels], "label": labels}, features)

    folder = tmp_path_factory.mktemp("stripes") / "data"
    DatasetDict(train=split(20_000), test=split(2_000)).save_to_disk(folder)
    return ["--data_dir", str(folder)]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Photos of two classes, or coloured noise of 300 by 250 pixels, as a list of options."""
    if (folder := data("hymenoptera")) is not None:
        return ["--data_dir", str(folder)]
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, tint in (("red", (60, 0, 0)), ("blue", (0, 0, 60))):
        (folder / name).mkdir()
        for number in range(120):
            pixels = (rng.normal(110, 50, (250, 300, 3)) + tint).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    return ["--data_dir", str(folder)]


@pytest.fixture(scope="session")
def lite0(tmp_path_factory):
    """The folder of EfficientNet-Lite0 with its ImageNet weights, or with random ones."""
    if (folder := data("tf_efficientnet_lite0.in1k")) is not None:
        return str(folder)
    from ftkit.config import ModelArguments
    from ftkit.data.pixels.images import ImageInfo
    from ftkit.models.classifier import Classifier
    from ftkit.tasks import SingleLabel

    folder, args = tmp_path_factory.mktemp("lite0"), ModelArguments(model="timm/tf_efficientnet_lite0")
    Classifier.build(args, SingleLabel(["a", "b", "c"]), ImageInfo((224, 224), 3), pretrained=False).save(folder)
    return str(folder)
