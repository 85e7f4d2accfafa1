"""A checkpoint is complete or skipped; a killed run ends with the same model as an undisturbed one."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import FOUR_EPOCHS, KEEP_ALL, KEEP_LAST, REPO, interrupt, train, weights
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel
from ftkit.training.checkpointing import checkpoints, saving


@pytest.fixture
def killed(whole, tmp_path):
    """The same run, as if it had been killed after its third checkpoint."""
    shutil.copytree(whole, tmp_path / "run")
    interrupt(tmp_path / "run", keep=3)
    return tmp_path / "run"


@pytest.fixture
def skipped(logged):
    """`skipped()` lists the messages about skipped checkpoints since the test began or asked last."""
    return lambda: [message for message in logged().splitlines() if "skipped" in message]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


def reseal(checkpoint):
    """Make a changed checkpoint complete again."""
    aside = checkpoints.hidden(checkpoint)
    os.replace(checkpoint, aside)
    (aside / "manifest.json").unlink()
    checkpoints.seal(aside, checkpoint)


@pytest.mark.parametrize("damage", [truncate, empty, flip, remove])
def test_a_damaged_file_is_named_and_its_checkpoint_skipped(killed, skipped, damage):
    stage = killed / "stages" / "0-all"
    newest, older = sorted(stage.glob("checkpoint-*"), key=checkpoints.step_of)[:0:-1]
    files = sorted(path for path in newest.iterdir() if path.is_file())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
            "progress_0.json", "manifest.json"} <= {path.name for path in files}  # fmt: skip
    for path in files:
        before = path.read_bytes()
        damage(path)
        assert checkpoints.newest_complete(stage) == older, path.name
        (message,) = skipped()
        assert str(newest) in message and (path.name in message or path.name == "manifest.json")
        path.write_bytes(before)
    assert checkpoints.newest_complete(stage) == newest


@pytest.mark.parametrize("name", ["../checkpoint-1/model.safetensors", "{folder}/model.safetensors", "/etc/passwd"])
def test_a_manifest_must_not_list_files_outside_its_checkpoint(killed, skipped, name):
    stage = killed / "stages" / "0-all"
    newest, older = sorted(stage.glob("checkpoint-*"), key=checkpoints.step_of)[:0:-1]
    name = name.format(folder=newest)
    listed = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({name: listed["model.safetensors"]} | listed))
    assert checkpoints.newest_complete(stage) == older
    assert f"lists {name}, which is outside the checkpoint" in skipped()[0]


@pytest.mark.parametrize("best", ["/etc", "..", "../../..", "/"])
def test_the_best_checkpoint_is_looked_for_in_the_same_folder(killed, skipped, best):
    stage = killed / "stages" / "0-all"
    newest, older = sorted(stage.glob("checkpoint-*"), key=checkpoints.step_of)[:0:-1]
    state = json.loads((newest / "trainer_state.json").read_text())
    (newest / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": best}))
    reseal(newest)
    assert checkpoints.newest_complete(stage) == older
    assert f"skipped {newest}" in skipped()[0]


def test_a_run_resumes_from_the_older_checkpoint_to_the_same_model(whole, killed, logged):
    stage = killed / "stages" / "0-all"
    newest, older = sorted(stage.glob("checkpoint-*"), key=checkpoints.step_of)[:0:-1]
    truncate(newest / "optimizer.pt")
    (stage / ".checkpoint-99.part").mkdir()  # as left by a process that was killed while saving
    train(killed, *FOUR_EPOCHS)
    shown = logged()
    assert (
        f"skipped {newest}: it holds" in shown
        and "bytes of optimizer.pt instead of" in shown
        and f"resumes from {older}" in shown
    )
    assert weights(killed) == weights(whole) and not list(stage.glob(".*"))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("change", "words"), [("lose", "is missing"), ("add", "another is unknown")])
def test_a_checkpoint_without_the_tensors_of_the_model_is_refused(mlp, tmp_path, refused, method, change, words):
    options = ["--model", mlp, "--method", method, *FOUR_EPOCHS[4:], "--num_train_epochs", 2]
    run = train(tmp_path / "run", *options).folder
    interrupt(run)
    (checkpoint,) = run.glob("stages/*/checkpoint-*")
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    if change == "add":
        tensors["another"] = torch.zeros(1)
    else:
        words = f"{tensors.popitem()[0]} {words}"
    save_file(tensors, path)
    reseal(checkpoint)
    with refused("output_dir", path, words, "--overwrite true"):
        train(run, *options)


def test_a_shared_tensor_is_saved_under_one_of_its_names(tmp_path, refused):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    tensors = {name: torch.ones_like(value) for name, value in model.state_dict().items() if name != "1.weight"}
    saving.load_tensors(model, tensors, tmp_path)
    assert all(bool((value == 1).all()) for value in model.state_dict().values())
    del tensors["0.weight"]
    with refused("0.weight is missing, 1.weight is missing"):
        saving.load_tensors(model, tensors, tmp_path)


def test_a_run_that_was_moved_knows_its_best_checkpoint(whole, killed, tmp_path):
    moved = tmp_path / "elsewhere" / "run"
    shutil.move(killed, moved.parent / "run")
    train(moved, *FOUR_EPOCHS)
    assert weights(moved) == weights(whole)


def test_a_checkpoint_whose_best_is_damaged_is_skipped(killed, skipped):
    stage = killed / "stages" / "0-all"
    first, second, third = sorted(stage.glob("checkpoint-*"), key=checkpoints.step_of)
    for checkpoint in (second, third):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        (checkpoint / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": str(second)}))
        reseal(checkpoint)
    flip(second / "model.safetensors")
    assert checkpoints.newest_complete(stage) == first
    assert f"names {second.name} as the best" in skipped()[0]


def test_a_named_checkpoint_must_be_complete(killed, refused):
    named = max((killed / "stages" / "0-all").glob("checkpoint-*"), key=checkpoints.step_of)
    remove(named / "scheduler.pt")
    with refused("resume_from_checkpoint", named.name, "has no scheduler.pt", "true for the newest one"):
        train(killed, *FOUR_EPOCHS, "--resume_from_checkpoint", named)


def test_a_finished_stage_with_damaged_weights_is_trained_again(whole, killed, tmp_path, logged):
    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    (tmp_path / "again" / "run.json").unlink()
    flip(tmp_path / "again" / "stages" / "0-all" / "model.safetensors")
    train(tmp_path / "again", *FOUR_EPOCHS)
    assert "skipped" in logged() and weights(tmp_path / "again") == weights(whole)


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(whole, tmp_path, monkeypatch, logged):
    """Every second one cannot be written: saved ones stay, and training continues."""
    seal, count = checkpoints.seal, 0

    def sometimes(aside, folder):
        nonlocal count
        count += 1
        if count % 2 == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(aside, folder)

    monkeypatch.setattr(saving, "seal", sometimes)
    run = train(tmp_path / "run", *FOUR_EPOCHS).folder
    shown = logged()
    assert shown.count("could not be written, training continues without it: [Errno 28]") == 2
    left = list((run / "stages" / "0-all").glob("*checkpoint-*"))
    assert len(left) == 2 and all(checkpoints.defect_of(path) is None for path in left)
    state = json.loads((run / "stages" / "0-all" / "trainer_state.json").read_text())
    assert state["best_global_step"] in {checkpoints.step_of(path) for path in left}


def test_a_full_disk_at_the_end_ends_the_run_and_the_same_command_resumes(whole, tmp_path, monkeypatch, refused):
    seal, count = checkpoints.seal, 0

    def full_after_two(aside, folder):
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(aside, folder)

    with monkeypatch.context() as context, refused("validation chose", "checkpoint-20", "make room there"):
        context.setattr(saving, "seal", full_after_two)
        train(tmp_path / "run", *FOUR_EPOCHS)
    train(tmp_path / "run", *FOUR_EPOCHS)
    assert weights(tmp_path / "run") == weights(whole)


def test_only_the_best_and_the_newest_are_left(tmp_path):
    run = train(tmp_path / "run", *FOUR_EPOCHS, "--save_total_limit", 1, "--learning_rate", 0.5).folder
    stage = run / "stages" / "0-all"
    best = json.loads((stage / "trainer_state.json").read_text())["best_global_step"]
    assert [checkpoints.step_of(path) for path in stage.glob("checkpoint-*")] == [best]


def test_no_pickle_is_written(whole):
    assert not list(whole.rglob("*.bin")) and not list(whole.rglob("*.pkl"))


@pytest.mark.parametrize(("limit", "left"), [(None, [1, 2, 3, 10]), (9, [1, 2, 3, 10]), (3, [1, 3, 10]), (1, [1, 10])])
def test_the_oldest_are_deleted_except_the_best(tmp_path, limit, left):
    for step in (1, 2, 3, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(tmp_path, limit, best=tmp_path / "checkpoint-1")
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == left


@pytest.mark.slow
def test_a_run_of_three_stages_survives_being_killed():
    """A few faults; `python tests/fault_harness.py --long` tries all."""
    done = subprocess.run([sys.executable, REPO / "tests" / "fault_harness.py"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPO / "tests")}, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "faults survived" in done.stdout


def test_a_model_that_saves_its_weights_under_other_names(tmp_path, monkeypatch):
    """transformers' ViT: the best checkpoint is kept, and a resume continues from its weights."""
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=8, num_labels=10)  # fmt: skip
    Classifier(ViTForImageClassification(config), ViTImageProcessor(size={"height": 8, "width": 8})).save(
        tmp_path / "vit"
    )
    options = ["--model", tmp_path / "vit", "--method", "full", "--max_train_samples", 160, "--num_train_epochs", 3,
               "--learning_rate", 0.01, "--metric_for_best_model", "accuracy"]  # fmt: skip
    patched = []

    def falling(*_):
        patched.append(dict.fromkeys(SingleLabel.validation(), 1.0) | {"accuracy": 1 / (1 + len(patched))})
        return patched[-1]

    monkeypatch.setattr("ftkit.tasks.SingleLabel.validate", falling)
    one = train(tmp_path / "one", *options, "--num_train_epochs", 1, "--lr_scheduler_type", "constant",
                "--warmup_steps", 0).folder  # fmt: skip
    patched.clear()
    three = train(tmp_path / "three", *options, "--lr_scheduler_type", "constant", "--warmup_steps", 0).folder
    assert weights(three) == weights(one)
    patched.clear()
    whole = train(tmp_path / "whole", *options, *KEEP_LAST, *KEEP_ALL).folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part, keep=1)
    train(part, *options, *KEEP_LAST, *KEEP_ALL)
    assert weights(part) == weights(whole)
