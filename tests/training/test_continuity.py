"""A run goes on with what it began with: the same images, labels, weights, precision and number of processes."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from support import KEEP_ALL, MLP, finetune, interrupt, train, weights

from ftkit.training import provenance
from ftkit.training.checkpointing import checkpoints

OPTIONS = [*MLP, *KEEP_ALL]
STAGES = [{"train": "head", "num_train_epochs": 1}, {"train": "all", "num_train_epochs": 3}]
TWO_STAGES = [*OPTIONS, "--stages", json.dumps(STAGES)]


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)).save(path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Images of two classes in files, and two runs on them: a finished one, and the same as if it had been killed."""
    root = tmp_path_factory.mktemp("begun")
    for first, split, count in ((0, "train", 60), (100, "validation", 20), (200, "test", 20)):
        for number in range(count):
            draw(root / "photos" / split / "ab"[number % 2] / f"{number}.png", first + number)
    train(root / "whole", *TWO_STAGES, "--data_dir", root / "photos", "--cache_dir", root / "cache")
    shutil.copytree(root / "whole", root / "run")
    interrupt(root / "run", keep=1)
    return root


@pytest.fixture
def copies(begun, tmp_path):
    """Copies of the images, in another place, and of the run that was killed in its second stage."""
    for name in ("photos", "run"):
        shutil.copytree(begun / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def goes_on(copies):
    """Gives the command again, with other options after it."""

    def again(*options):
        cache = ["--cache_dir", copies / "cache"]
        return finetune(copies / "run", *TWO_STAGES, "--data_dir", copies / "photos", *cache, *options)

    return again


@pytest.fixture
def refused_untouched(copies, refused):
    """As `refused`, and nothing in the run's folder has changed."""

    def expect(*words):
        class Both:
            def __enter__(self):
                self.before, self.refusal = contents(copies / "run"), refused(*words)
                self.refusal.__enter__()

            def __exit__(self, *error):
                assert contents(copies / "run") == self.before
                return self.refusal.__exit__(*error)

        return Both()

    return expect


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def last_stage(run):
    return run / "stages" / "1-all"


def reseal(checkpoint):
    (checkpoint / "manifest.json").unlink()
    aside = checkpoints.hidden(checkpoint)
    os.replace(checkpoint, aside)
    checkpoints.seal(aside, checkpoint)


def test_a_run_goes_on_where_its_images_lie_now(begun, copies, goes_on):
    """Neither paths nor times of files count."""
    for path in (copies / "photos").rglob("*.png"):
        os.utime(path, (1, 1))
    assert weights(goes_on()) == weights(begun / "whole")
    assert f"data_dir: {copies / 'photos'}" in (copies / "run" / "config.yaml").read_text()


def test_other_images_are_refused_with_their_number(copies, goes_on, refused_untouched):
    train = copies / "photos" / "train"
    for number in (2, 4, 6):
        draw(train / "a" / f"{number}.png", 5000 + number)
    (train / "b" / "1.png").unlink()
    words = [
        "output_dir",
        copies / "run",
        "train: 3 images are new, 4 images are missing",
        "restore",
        "--overwrite true",
    ]
    with refused_untouched(*words):
        goes_on()


def test_other_images_that_a_finished_stage_rests_on_are_refused(copies, goes_on, refused_untouched):
    shutil.rmtree(last_stage(copies / "run"))
    draw(copies / "photos" / "validation" / "a" / "2.png", 5000)
    with refused_untouched("validation: 1 image is new, 1 image is missing"):
        goes_on()


def test_without_a_checkpoint_nothing_rests_on_the_images(copies, goes_on):
    shutil.rmtree(copies / "run" / "stages")
    draw(copies / "photos" / "train" / "a" / "2.png", 5000)
    assert (goes_on() / "run.json").is_file()


def test_other_labels_are_refused(copies, goes_on, refused_untouched):
    train = copies / "photos" / "train"
    (train / "a" / "2.png").rename(train / "b" / "2.png")
    with refused_untouched("train: 1 image has another label"):
        goes_on()


def test_another_order_is_refused(copies, goes_on, refused_untouched):
    """It decides which images make a batch."""
    train = copies / "photos" / "train"
    (train / "a" / "2.png").rename(train / "a" / "7000.png")
    with refused_untouched("train: the same images in another order"):
        goes_on()


def test_other_classes_are_refused(copies, goes_on, refused_untouched):
    for split in ("train", "validation", "test"):
        (copies / "photos" / split / "b").rename(copies / "photos" / split / "c")
    with refused_untouched("its classes were a, b, and now they are a, c"):
        goes_on()


def test_another_precision_of_the_launcher_is_refused(goes_on, refused_untouched, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with refused_untouched("another configuration", "bf16: false there, true here"):
        goes_on()


def test_other_weights_to_start_from_are_refused(tmp_path, refused):
    for name in ("base", "other"):
        seed = ["--seed", 1 if name == "base" else 2]
        train(tmp_path / name, *OPTIONS, "--dataset", "blobs", "--max_steps", 1, *seed)
    options = ["--dataset", "blobs", "--method", "lora", "--model", tmp_path / "base" / "model", "--num_train_epochs",
               2, "--save_total_limit", 9, "--max_train_samples", 64]  # fmt: skip
    interrupt(train(tmp_path / "run", *options).folder)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "other").rename(tmp_path / "base")
    with refused("started from other weights", "start from the same weights again"):
        train(tmp_path / "run", *options)


def test_what_may_differ_is_said_in_one_line(begun, goes_on, monkeypatch, capsys):
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"torch": "9.9", "timm": "8.8"})
    assert weights(goes_on()) == weights(begun / "whole")
    lines = [line for line in capsys.readouterr().out.splitlines() if "9.9" in line]
    assert len(lines) == 1 and "timm" in lines[0] and "8.8" in lines[0] and "transformers" not in lines[0]


def test_nothing_is_said_where_nothing_differs(goes_on, capsys):
    goes_on()
    assert "since then" not in capsys.readouterr().out


@pytest.mark.parametrize("where", ["checkpoint", "stage"])
def test_what_an_older_version_wrote_is_refused(copies, goes_on, refused_untouched, where):
    if where == "stage":
        result = copies / "run" / "stages" / "0-head" / "result.json"
        known = json.loads(result.read_text())
        known.pop("fingerprint")
        result.write_text(json.dumps(known))
    else:
        for checkpoint in last_stage(copies / "run").glob("checkpoint-*"):
            (checkpoint / "fingerprint.json").unlink()
            reseal(checkpoint)
    with refused_untouched("an older version of ftkit", "--overwrite true"):
        goes_on()


def test_a_folder_without_its_configuration_is_refused(copies, goes_on, refused_untouched):
    (copies / "run" / "config.yaml").unlink()
    with refused_untouched("config.yaml", "--overwrite true"):
        goes_on()


@pytest.mark.parametrize("output_dir", ["run", "new"])
def test_a_checkpoint_of_another_run_is_refused(begun, copies, refused_untouched, output_dir):
    (checkpoint, *_) = last_stage(begun / "whole").glob("checkpoint-*")
    with refused_untouched("resume_from_checkpoint", checkpoint, "is no checkpoint of", copies / output_dir):
        train(
            copies / output_dir, *TWO_STAGES, "--data_dir", copies / "photos", "--resume_from_checkpoint", checkpoint
        )
    assert not (copies / "new").exists()


def test_a_checkpoint_of_a_finished_stage_is_refused(copies, goes_on, refused_untouched):
    (checkpoint,) = (copies / "run" / "stages" / "0-head").glob("checkpoint-*")
    with refused_untouched("resume_from_checkpoint", checkpoint, "is finished", "leave it out"):
        goes_on("--resume_from_checkpoint", checkpoint)


def test_a_checkpoint_to_go_on_from_is_not_overwritten(copies, goes_on, refused_untouched):
    (checkpoint,) = last_stage(copies / "run").glob("checkpoint-*")
    with refused_untouched("resume_from_checkpoint", "overwrite"):
        goes_on("--resume_from_checkpoint", checkpoint, "--overwrite", "true")


def test_damaged_tables_of_images_cost_the_count_alone(copies, goes_on, refused_untouched, caplog):
    logging.getLogger("ftkit").propagate = True
    (copies / "run" / "data.safetensors").write_bytes(b"")
    draw(copies / "photos" / "train" / "a" / "2.png", 5000)
    with refused_untouched("train: other images"):
        goes_on()
