"""Training and all other jobs on a device that is not the CPU; and no step of training waits for it."""

from collections import Counter

import pytest
from pretend_device import pretend_device
from support import finetune

from ftkit.arguments.data import AUGMENTATIONS
from ftkit.training.trainer import ImageTrainer

# 64 training images: 4 steps an epoch. Fused optimizers ask for a real device.
TINY = ["--classes", 0, 1, "--max_train_samples", 64, "--per_device_train_batch_size", 16, "--num_train_epochs", 2,
        "--optim", "adamw_torch", "--learning_rate", 0.003]  # fmt: skip
AUGMENT = [name for name in AUGMENTATIONS if name != "flip"]  # with which alternating_flip would be refused


@pytest.fixture
def pretended():
    """The pretended device, which everything runs on."""
    with pretend_device() as pretended:
        yield pretended


@pytest.fixture
def waits(pretended, monkeypatch):
    """What the steps of training wait for, but for the first one, and for those that log, evaluate or save."""
    counted, before = Counter(), Counter()
    fetch, finish = ImageTrainer.get_batch_samples, ImageTrainer._maybe_log_save_evaluate

    def begin(self, *args):
        before.clear()
        before.update(pretended.waits)
        return fetch(self, *args)

    def end(self, *args, **kwargs):
        control, due = self.control, Counter()
        if control.should_log or control.should_evaluate or control.should_save:
            due.update(pretended.waits)
            finish(self, *args, **kwargs)
            due = pretended.waits - due
        else:
            finish(self, *args, **kwargs)
        if self.state.global_step > 1:
            counted.update(pretended.waits - before - due)
        before.clear()
        before.update(pretended.waits)

    monkeypatch.setattr(ImageTrainer, "get_batch_samples", begin)
    monkeypatch.setattr(ImageTrainer, "_maybe_log_save_evaluate", end)
    return counted


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="default"),
        pytest.param(["--mixup", 0.2, "--cutmix", 1.0, "--ema_decay", 0.9, "--l1", 1e-5, "--dropout", 0.1], id="loss"),
        pytest.param(["--augment", *AUGMENT], id="augment"),
        pytest.param(["--gradient_accumulation_steps", 2, "--max_grad_norm", 0], id="accumulation"),
        pytest.param(["--auto_find_batch_size", "true"], id="auto_find_batch_size"),
        pytest.param(["--data_engine", "stream", "--dataloader_num_workers", 0, "--augment", "flip"], id="stream"),
        pytest.param(["--model", "timm/test_resnet", "--augment", "flip"], id="resnet"),
        pytest.param(["--model", "timm/test_vit", "--image_size", 16], id="vit"),
    ],
)
def test_training_waits_for_nothing(tmp_path, waits, options):
    run = finetune(tmp_path / "run", *TINY, *options)
    assert (run / "run.json").is_file()
    assert waits == {}
