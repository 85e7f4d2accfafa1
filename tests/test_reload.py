"""A saved model in a process that cannot import ftkit gives the logits of the evaluation."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from support import train

from ftkit.config import DataArguments
from ftkit.data.sources.load import load_data
from ftkit.models.checks import OWN_MODELS
from ftkit.run import evaluate

MODELS = {name: ["--model", name] for name in OWN_MODELS} | {
    "timm resnet": ["--model", "timm/test_resnet", "--image_size", "32"],
    "timm vit": ["--model", "timm/test_vit", "--image_size", "32"],
}
# Reads {"model": folder, "images": [paths], "remote": bool} lines from standard input.
CLEAN_PROCESS = """
import json, sys
sys.modules["ftkit"] = None  # any import of it fails
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

for line in sys.stdin:
    job = json.loads(line)
    options = {"trust_remote_code": True} if job["remote"] else {}
    model = AutoModelForImageClassification.from_pretrained(job["model"], **options).eval()
    processor = AutoImageProcessor.from_pretrained(job["model"], **options)
    images = [Image.open(path).convert("RGB") for path in job["images"]]
    with torch.no_grad():
        logits = torch.cat([model(**processor(image, return_tensors="pt")).logits for image in images])
    classify = pipeline("image-classification", model=job["model"], **options)
    named = [{row["label"]: row["score"] for row in classify(path, top_k=100)} for path in job["images"][:5]]
    print(json.dumps({"logits": logits.tolist(), "pipeline": named}))
"""


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Colour JPEG and PNG files of several sizes in class folders."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 4), ("test", 8)):
        for name, tint in (("warm", (200, 80, 40)), ("cold", (40, 80, 200)), ("grün", (40, 200, 60))):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = rng.integers(20, 60, 2)
                pixels = np.clip(rng.normal(tint, 60, (*size, 3)), 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels).resize((int(size[0]) + 7, int(size[1])))
                image.save(root / split / name / f"{i}.{'jpg' if i % 2 else 'png'}", quality=90)
    return root


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """The test images of the embedded digits as files, by their index."""
    root = tmp_path_factory.mktemp("digit_files")
    for row in load_data(DataArguments(dataset="digits"))["test"]:
        row["image"].save(root / f"{row['index']}.png")
    return root


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, photo_folder, digit_files):
    """For each model and kind of data: the stored logits, the class names, and what a clean process says."""
    jobs, stored = [], {}
    for name, options in MODELS.items():
        for kind, data in (("digits", ["--max_train_samples", 100]), ("photos", ["--data_dir", photo_folder])):
            job = train(tmp_path_factory.mktemp("run") / "run", *data, *options, "--num_train_epochs", 1)
            evaluate(job)
            predictions = job.predicted["plain"]
            if kind == "digits":
                files = [digit_files / f"{i}.png" for i in predictions.index[:40]]
            else:
                test = load_data(DataArguments(data_dir=str(photo_folder)))["test"]
                files = [row["path"] for row in test.cast_column("image", _undecoded())["image"]]
            stored[name, kind] = predictions.logits[: len(files)], predictions.task.names
            remote = not name.startswith("timm")
            jobs.append({"model": str(job.folder / "model"), "images": [str(f) for f in files], "remote": remote})
    environment = {**os.environ, "PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS],
        input="\n".join(map(json.dumps, jobs)),
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    return {key: (*stored[key], answer) for key, answer in zip(stored, answers, strict=True)}


def _undecoded():
    from datasets import Image as ImageFeature

    return ImageFeature(decode=False)


@pytest.mark.parametrize("kind", ["digits", "photos"])
@pytest.mark.parametrize("model", MODELS)
def test_the_same_logits_without_ftkit(evaluated, model, kind):
    logits, names, answer = evaluated[model, kind]
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)
    for row, named in zip(softmax(logits, axis=1), answer["pipeline"], strict=False):
        assert set(named) == set(names)
        np.testing.assert_allclose([named[name] for name in names], row, atol=1e-4)
