"""Images that others see with other pixels, or in other colours, from the log to the gate."""

import json

import numpy as np
import pytest
from PIL import Image
from support import MLP, answers_here, finetune

from ftkit import run as steps
from ftkit.evaluation.report import read_record
from ftkit.hub.parity import check_parity
from ftkit.owners import parse_config

QUICK = [*MLP, "--num_train_epochs", 1, "--report_to", "none"]

CONVNET = ["--model", "convnet", "--model_args", '{"hidden_sizes": [8, 8], "depths": [0, 0]}']


def write(root, save, count=20, classes="ab"):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(np.random.default_rng(count * label + i).normal(0.3 + 0.4 * label, 0.05, (6, 6)), 0, 1)
            save(pixels, i).save(root / name / f"{i:03d}.png")
    return root


def sixteen_bit(pixels, i):
    return Image.fromarray((pixels * 65535).astype(np.uint16))


def transparent(pixels, i):
    black, alpha = np.zeros((6, 6, 3), np.uint8), (255 * pixels).astype(np.uint8)
    return Image.fromarray(np.dstack([black, alpha]))


@pytest.mark.parametrize(
    "save, kind",
    [
        (sixteen_bit, "are 16-bit: ftkit scales them"),
        (transparent, "have transparent parts: ftkit lays"),
    ],
)
def test_a_pipeline_would_see_other_pixels(tmp_path, capsys, refused, monkeypatch, save, kind):
    monkeypatch.setattr("ftkit.hub.parity._load_elsewhere", answers_here)
    run = finetune(tmp_path / "run", "--data_dir", write(tmp_path / "data", save), *QUICK)
    log, card = capsys.readouterr().out, (run / "model" / "README.md").read_text()
    pages = [(run / "evaluation" / f"report.{ending}").read_text() for ending in ("html", "md")]
    for text in (log, card, *pages):
        assert f"28 of the 28 images of train {kind}" in text and f"8 of the 8 images of test {kind}" in text
    assert log.index(kind) < log.index("── train")
    with refused("must not be pushed", f"of them {kind}", "Convert the images to 8-bit files"):
        check_parity(run / "model", run / "evaluation", read_record(run))


def build(folder, *options):
    """A run up to its classifier and images."""
    job = steps.start(parse_config([*map(str, QUICK), "--output_dir", str(folder), *map(str, options)]))
    steps.read_data(job)
    steps.build_classifier(job)
    return job


@pytest.mark.parametrize("engine", ["tensor", "stream"])
def test_one_image_in_colour_among_many_in_grey(tmp_path, engine):
    """Also one that is not in the sample of headers that a model is built from first."""

    def save(pixels, i):
        grey = Image.fromarray((255 * pixels).astype(np.uint8))
        return Image.merge("RGB", [grey, grey, Image.new("L", (6, 6))]) if i == 250 else grey

    data = write(tmp_path / "data", save, count=300)
    (data / "b" / "250.png").unlink()
    job = build(tmp_path / "run", "--data_dir", data, *CONVNET, "--data_engine", engine)
    assert job.classifier.channels == 3 and {rows.shape[0] for rows in job.images.values()} == {3}
    assert not any(rows.kinds for rows in job.images.values())


def test_a_model_of_grey_images_says_that_it_converts_colours(tmp_path, capsys):
    def save(pixels, i):
        return Image.fromarray((255 * pixels).astype(np.uint8)).convert("RGB" if i else "L")

    data = write(tmp_path / "data", save)
    grey = [*CONVNET[:-1], CONVNET[-1].replace("}", ', "num_channels": 1}')]
    run = finetune(tmp_path / "run", *QUICK, "--data_dir", data, *grey)
    kinds = json.loads((run / "run.json").read_text())["image_kinds"]
    assert sum(found["in colour"] for found in kinds.values()) == 38
    assert "are in colour, and are converted to grey for a model of grey images" in capsys.readouterr().out
