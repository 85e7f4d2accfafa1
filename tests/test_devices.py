"""Training and all other jobs on a device that is not the CPU; and no step of training waits for it."""

import json
import math
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
        pytest.param(["--on_nan", "skip"], id="skip"),
        pytest.param(["--on_nan", "rollback"], id="rollback"),
        pytest.param(["--data_engine", "stream", "--dataloader_num_workers", 0, "--augment", "flip"], id="stream"),
        pytest.param(["--model", "timm/test_resnet", "--augment", "flip"], id="resnet"),
        pytest.param(["--model", "timm/test_vit", "--image_size", 16], id="vit"),
    ],
)
def test_training_waits_for_nothing(tmp_path, waits, options):
    run = finetune(tmp_path / "run", *TINY, *options)
    assert (run / "run.json").is_file()
    assert waits == {}


def test_an_update_is_left_out_as_on_the_cpu(tmp_path, monkeypatch):
    """Weights, the optimizer's momentum and the log are those that the CPU gives, where the host sees the gradient."""
    original = ImageTrainer.compute_loss

    def compute_loss(self, model, inputs, **options):
        loss = original(self, model, inputs, **options)
        return loss * float("nan") if model.training and self.state.global_step + 1 in (1, 3, 6) else loss

    monkeypatch.setattr(ImageTrainer, "compute_loss", compute_loss)
    options = [*TINY, "--optim", "timm/momentum", "--optim_args", "momentum=0.9", "--on_nan", "skip"]
    options += ["--load_best_model_at_end", "false"]
    finetune(tmp_path / "here", *options)
    with pretend_device():
        finetune(tmp_path / "there", *options)
    here, there = ((tmp_path / place / "model" / "model.safetensors").read_bytes() for place in ("here", "there"))
    assert here == there
    for place in ("here", "there"):
        record = json.loads((tmp_path / place / "run.json").read_text())
        assert record["stages"][0]["updates_left_out"] == 3
        log = json.loads((tmp_path / place / "stages/0-all/trainer_state.json").read_text())["log_history"]
        assert all(math.isfinite(line["loss"]) for line in log if "loss" in line)


FINE_TUNING = [*TINY, "--max_train_samples", 32]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--method", "full"], id="full"),
        pytest.param(["--method", "linear_probe"], id="linear_probe"),
        pytest.param(["--method", "lp_ft"], id="lp_ft"),
        pytest.param(["--method", "bitfit"], id="bitfit"),
        pytest.param(["--method", "norm_tuning"], id="norm_tuning"),
        pytest.param(["--method", "lora", "--merge_adapters", "true", "--adapter_args", '{"r": 2}'], id="lora"),
        pytest.param(["--method", "dora", "--adapter_args", '{"r": 2}'], id="dora"),
        pytest.param(["--method", "adalora", "--num_train_epochs", 4], id="adalora"),
    ],
)
def test_fine_tuning_waits_for_nothing(tmp_path, waits, convnet, options):
    run = finetune(tmp_path / "run", *FINE_TUNING, "--model", convnet, *options)
    assert (run / "run.json").is_file()
    assert waits == {}
