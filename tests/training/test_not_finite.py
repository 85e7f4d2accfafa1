"""A loss that is not finite is reported with its step and batch; `on_nan` stops, skips the update or rolls back."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import KEEP_ALL, KEEP_LAST, MLP, stage_results, train, weights

from ftkit.training.loop.trainer import ImageTrainer

# 160 training images: 5 steps an epoch. With plain SGD it is clear what an update did.
OPTIONS = [*MLP, *KEEP_ALL, *KEEP_LAST, "--max_train_samples", 160, "--optim", "sgd", "--learning_rate", 0.1,
           "--num_train_epochs", 3, "--per_device_train_batch_size", 32, "--lr_scheduler_type", "linear",
           "--warmup_steps", 0]  # fmt: skip


@pytest.fixture
def spoiled(monkeypatch):
    """`spoiled(steps)` makes the loss NaN at these steps; returns the images of the last such batch."""
    original, batches = ImageTrainer.compute_loss, {}

    def spoil(*steps):
        def compute_loss(self, model, inputs, **options):
            loss = original(self, model, inputs, **options)
            return loss * float("nan") if model.training and self.state.global_step + 1 in steps else loss

        def training_step(self, model, inputs, *more):
            batches[self.state.global_step + 1] = inputs["index"].tolist()
            return step(self, model, inputs, *more)

        step = ImageTrainer.training_step
        monkeypatch.setattr(ImageTrainer, "compute_loss", compute_loss)
        monkeypatch.setattr(ImageTrainer, "training_step", training_step)
        return batches

    return spoil


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_the_run_stops_and_reports_step_rate_images_and_checkpoint(tmp_path, spoiled, refused):
    batches, stage = spoiled(8), tmp_path / "run" / "stages" / "0-all"
    words = [
        "loss is nan at step 8",
        "learning rate 0.0533",
        f"last good checkpoint is {stage}/checkpoint-5",
        "on_nan: skip",
    ]
    with refused(*words):
        train(tmp_path / "run", *OPTIONS)
    report = json.loads((stage / "not_finite.json").read_text())
    assert report["step"] == 8 and report["images"] == batches[8] and len(batches[8]) == 32
    assert [path.name for path in stage.glob("checkpoint-*")] == ["checkpoint-5"]  # none of what came after


def test_a_run_that_stopped_resumes_without_that_batch(tmp_path, spoiled, refused):
    spoiled(8)
    with refused("step 8"):
        train(tmp_path / "run", *OPTIONS)
    run = train(tmp_path / "run", *OPTIONS, "--on_nan", "skip").folder
    whole = train(tmp_path / "whole", *OPTIONS, "--on_nan", "skip").folder
    assert weights(run) == weights(whole)
    for folder in (run, whole):
        assert stage_results(folder)[0]["updates_left_out"] == 1
        log = json.loads((folder / "stages/0-all/trainer_state.json").read_text())["log_history"]
        assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)


def test_a_skipped_update_changes_nothing(tmp_path, spoiled):
    """Every update of the last epoch is skipped: the model is that of the second epoch."""
    spoiled(*range(11, 16))
    run = train(tmp_path / "run", *OPTIONS, "--on_nan", "skip", "--max_grad_norm", 0).folder
    before, after = tensors(run / "stages/0-all/checkpoint-10"), tensors(run / "model")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_back_to_the_newest_checkpoint(tmp_path, spoiled, caplog):
    """If the last step is spoiled, the run finishes with the newest checkpoint."""
    spoiled(15)
    run = train(tmp_path / "run", *OPTIONS, "--on_nan", "rollback").folder
    before, after = tensors(run / "stages/0-all/checkpoint-10"), tensors(run / "model")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_training_continues_with_its_schedule_after_a_rollback(tmp_path, spoiled):
    spoiled(7)
    run = train(tmp_path / "run", *OPTIONS, "--on_nan", "rollback", "--logging_steps", 1).folder
    log = json.loads((run / "stages/0-all/trainer_state.json").read_text())["log_history"]
    rates = [line["learning_rate"] for line in log if "learning_rate" in line]
    np.testing.assert_allclose(rates, [0.1 * (1 - step / 15) for step in range(15)], atol=1e-9)
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)
    assert not np.array_equal(*(tensors(run / place)["classifier.weight"] for place in
                                ("stages/0-all/checkpoint-5", "model")))  # fmt: skip


def test_a_rollback_that_does_not_help_or_has_no_checkpoint(tmp_path, spoiled, refused):
    spoiled(*range(6, 16))
    with refused("after 3 returns to the same weights", "checkpoint-5"):
        train(tmp_path / "run", *OPTIONS, "--on_nan", "rollback", "--logging_steps", 1)
    spoiled(2)
    with refused("step 2", "there is no checkpoint yet"):
        train(tmp_path / "other", *OPTIONS, "--on_nan", "rollback")


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, refused):
    """The loss of the last step of an epoch is finite, and its update is not."""

    def spoil(self, model, clipped):
        if self.state.global_step + 1 == 5:
            next(model.parameters()).grad.fill_(float("inf"))

    monkeypatch.setattr(ImageTrainer, "gradient_norm", spoil)
    with refused("the loss is nan at step 5", "there is no checkpoint yet"):
        train(tmp_path / "run", *OPTIONS)
