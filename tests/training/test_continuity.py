"""A run resumes only with the images, labels, weights, precision and number of processes that it started with."""

import json
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from support import KEEP_ALL, MLP, finetune, interrupt, train, weights

from ftkit.training import provenance
from ftkit.training.checkpointing import checkpoints, continuity

OPTIONS = [*MLP, *KEEP_ALL]
STAGES = [{"train": "head", "num_train_epochs": 1}, {"train": "all", "num_train_epochs": 3}]
TWO_STAGES = [*OPTIONS, "--stages", json.dumps(STAGES)]


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)).save(path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Image files of two classes, a finished run on them, and the same run as if it had been killed."""
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
    """Copies, in another place, of the images and of the run that was killed in its second stage."""
    for name in ("photos", "run"):
        shutil.copytree(begun / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def resume(copies):
    """`resume(*options)` repeats the command with more options."""

    def again(*options):
        cache = ["--cache_dir", copies / "cache"]
        return train(copies / "run", *TWO_STAGES, "--data_dir", copies / "photos", *cache, *options).folder

    return again


@pytest.fixture
def refused_untouched(copies, refused):
    """As `refused`, and asserts that nothing in the run's folder changes."""

    @contextmanager
    def expect(*words):
        before = contents(copies / "run")
        with refused(*words):
            yield
        assert contents(copies / "run") == before

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


def test_a_run_resumes_with_images_that_were_moved(begun, copies, resume):
    """Neither paths nor times of files matter."""
    for path in (copies / "photos").rglob("*.png"):
        os.utime(path, (1, 1))
    assert weights(resume()) == weights(begun / "whole")
    assert f"data_dir: {copies / 'photos'}" in (copies / "run" / "config.yaml").read_text()


def test_other_images_are_counted_and_refused(copies, resume, refused_untouched):
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
        resume()


def test_other_images_than_those_of_a_finished_stage_are_refused(copies, resume, refused_untouched):
    shutil.rmtree(last_stage(copies / "run"))
    draw(copies / "photos" / "validation" / "a" / "2.png", 5000)
    with refused_untouched("validation: 1 image is new, 1 image is missing"):
        resume()


def test_without_a_checkpoint_the_images_may_change(copies, resume):
    shutil.rmtree(copies / "run" / "stages")
    draw(copies / "photos" / "train" / "a" / "2.png", 5000)
    assert weights(resume())


def test_other_labels_are_refused(copies, resume, refused_untouched):
    train = copies / "photos" / "train"
    (train / "a" / "2.png").rename(train / "b" / "2.png")
    with refused_untouched("train: 1 image has another label"):
        resume()


def test_another_order_is_refused(copies, resume, refused_untouched):
    """The order decides which images share a batch."""
    train = copies / "photos" / "train"
    (train / "a" / "2.png").rename(train / "a" / "7000.png")
    with refused_untouched("train: the same images in another order"):
        resume()


def test_other_classes_are_refused(copies, resume, refused_untouched):
    for split in ("train", "validation", "test"):
        (copies / "photos" / split / "b").rename(copies / "photos" / split / "c")
    with refused_untouched("its classes were a, b, and now they are a, c"):
        resume()


def test_another_precision_of_the_launcher_is_refused(resume, refused_untouched, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with refused_untouched("another configuration", "bf16: false there, true here"):
        resume()


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


def test_allowed_differences_are_logged_in_one_line(begun, resume, monkeypatch, logged):
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"torch": "9.9", "timm": "8.8"})
    assert weights(resume()) == weights(begun / "whole")
    lines = [line for line in logged().splitlines() if "9.9" in line]
    assert len(lines) == 1 and "timm" in lines[0] and "8.8" in lines[0] and "transformers" not in lines[0]


def test_nothing_is_logged_if_nothing_differs(resume, logged):
    resume()
    assert "since then" not in logged()


@pytest.mark.parametrize("where", ["checkpoint", "stage"])
def test_a_checkpoint_or_stage_of_an_older_version_is_refused(copies, resume, refused_untouched, where):
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
        resume()


def test_a_folder_without_its_configuration_is_refused(copies, resume, refused_untouched):
    (copies / "run" / "config.yaml").unlink()
    with refused_untouched("config.yaml", "--overwrite true"):
        resume()


@pytest.mark.parametrize("output_dir", ["run", "new"])
def test_a_checkpoint_of_another_run_is_refused(begun, copies, refused_untouched, output_dir):
    (checkpoint, *_) = last_stage(begun / "whole").glob("checkpoint-*")
    with refused_untouched("resume_from_checkpoint", checkpoint, "is no checkpoint of", copies / output_dir):
        train(
            copies / output_dir, *TWO_STAGES, "--data_dir", copies / "photos", "--resume_from_checkpoint", checkpoint
        )
    assert not (copies / "new").exists()


def test_a_checkpoint_of_a_finished_stage_is_refused(copies, resume, refused_untouched):
    (checkpoint,) = (copies / "run" / "stages" / "0-head").glob("checkpoint-*")
    with refused_untouched("resume_from_checkpoint", checkpoint, "is finished", "leave it out"):
        resume("--resume_from_checkpoint", checkpoint)


def test_a_checkpoint_to_resume_from_is_not_overwritten(copies, resume, refused_untouched):
    (checkpoint,) = last_stage(copies / "run").glob("checkpoint-*")
    with refused_untouched("resume_from_checkpoint", "overwrite"):
        resume("--resume_from_checkpoint", checkpoint, "--overwrite", "true")


def test_without_the_table_of_images_only_the_count_is_missing(copies, resume, refused_untouched):
    (copies / "run" / "data.safetensors").write_bytes(b"")
    draw(copies / "photos" / "train" / "a" / "2.png", 5000)
    with refused_untouched("train: other images"):
        resume()


@pytest.mark.parametrize("older", [None, 1])  # None: not recorded
def test_augmentations_with_other_random_numbers_are_refused(tmp_path, monkeypatch, refused, older):
    options = [*OPTIONS, "--augment", "random_crop", "--max_train_samples", 64, "--num_train_epochs", 2]
    with monkeypatch.context() as patch:
        patch.setattr(continuity, "_AUGMENTATION", older)
        run = train(tmp_path / "run", *options).folder
    interrupt(run, keep=1)
    with refused("another version of ftkit, whose augmentations draw other random numbers"):
        finetune(run, *options)
