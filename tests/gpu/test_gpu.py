"""Runs on a real GPU, for what no CPU can show. See conftest.py for the command and the data."""

import json
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import finetune, interrupt, weights

from ftkit.data.augmentation.augment import AUGMENTATIONS, augment
from ftkit.data.feeding.tensors import ImageTensors
from ftkit.evaluation.report import read_record
from ftkit.hub.parity import check_parity
from ftkit.models.classifier import Classifier
from ftkit.training.loop.trainer import ImageTrainer

VIT = ["--model", "timm/test_vit", "--image_size", 32]
SHORT = ["--num_train_epochs", 2, "--max_train_samples", 400]


def assert_close(first, second, atol):
    """Compare trained weights only: 50 steps turn 1e-6 in the pixels into 0.05 in running statistics."""
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    for name in (name for name in expected if "running_" not in name):
        np.testing.assert_allclose(found[name], expected[name], atol=atol, err_msg=name)


def gate(run):
    """The difference between the GPU's evaluation and a plain pipeline on the CPU."""
    return check_parity(run / "model", run / "evaluation", read_record(run))


# --- the real command


def test_default_run(launch, measured):
    started = time.monotonic()
    record = read_record(launch("single_gpu"))
    assert record["device"].startswith("cuda") and record["precision"] == "bf16"
    assert record["test"]["accuracy"] > 0.9
    measured(accuracy=record["test"]["accuracy"], seconds=round(time.monotonic() - started, 1),
             inside=record["seconds"])  # fmt: skip


def test_fsdp2_of_one_process(launch, measured):
    run = launch("fsdp", "--num_train_epochs", 3, "--stages", '[{"train": "head"}, {"train": "all"}]')
    record = read_record(run)
    assert record["precision"] == "bf16" and record["test"]["accuracy"] > 0.7
    measured(accuracy=record["test"]["accuracy"], difference=gate(run))


# --- MNIST


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_mnist(train, digits28, model):
    options = ["--model_args", '{"hidden_sizes": [512]}'] if model == "mlp" else ["--augment", "translate"]
    run = train(*digits28, "--model", model, *options, "--num_train_epochs", 2, "--per_device_train_batch_size", 512,
                "--learning_rate", 0.004, "--bf16", str(model == "convnet").lower())  # fmt: skip
    assert read_record(run)["test"]["accuracy"] > 0.95


# --- trained weights at 224 pixels


@pytest.mark.parametrize("engine", ["tensor", "stream"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_lite0(train, photos, lite0, measured, method, engine):
    merge = ["--merge_adapters", "true"] if method == "lora" else []
    run = train(*photos, "--model", lite0, "--method", method, "--data_engine", engine, "--bf16", "true",
                "--num_train_epochs", 3, "--per_device_train_batch_size", 32, "--augment", "flip",
                "--learning_rate", 1e-3, *merge)  # fmt: skip
    assert read_record(run)["test"]["accuracy"] > 0.8
    if engine == "tensor":
        measured(difference_of_a_plain_pipeline=gate(run))


def test_linear_probe_on_cached_features(train, photos, lite0, measured):
    run = train(*photos, "--model", lite0, "--method", "linear_probe", "--num_train_epochs", 10, "--bf16", "true")
    assert read_record(run)["test"]["accuracy"] > 0.8
    measured(difference_of_a_plain_pipeline=gate(run))


def test_batches_that_do_not_fit(train, photos, lite0, measured):
    """Really out of memory: this process may use 3 GB of the card."""
    options = [*photos, "--model", lite0, "--method", "full", "--bf16", "true", "--num_train_epochs", 2,
               "--per_device_train_batch_size", 200, "--auto_find_batch_size", "true"]  # fmt: skip
    torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.mem_get_info()[1])
    try:
        run = train(*options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert read_record(run)["peak_memory_mb"]["gpu"] < 3000
    measured(limit_mb=3000)


# --- repeated and resumed runs


@pytest.mark.parametrize("method", ["convnet", "photos"])
def test_full_determinism_repeats_itself(train, photos, lite0, method):
    options = ["--dropout", 0.1, "--augment", *AUGMENTATIONS.keys() - {"flip"}, "--mixup", 0.2, *SHORT]
    if method == "photos":
        options = [*photos, "--model", lite0, "--method", "full", "--num_train_epochs", 1]
    runs = [train("--full_determinism", "true", "--bf16", "true", *options, folder=name) for name in ("a", "b")]
    assert weights(runs[0]) == weights(runs[1])


@pytest.mark.parametrize("options", [[], ["--ema_decay", 0.9], [*VIT, "--optim", "adamw_torch"]],
                         ids=["convnet", "ema", "vit"])  # fmt: skip
def test_a_resume_is_exact(train, options):
    options = ["--full_determinism", "true", "--bf16", "true", "--dropout", 0.1, "--augment", "random_crop",
               "--num_train_epochs", 4, "--max_train_samples", 400, "--save_total_limit", 9, *options]  # fmt: skip
    run = train(*options)
    expected = weights(run)
    interrupt(run, keep=2)
    assert weights(train(*options)) == expected


def test_checkpoints_cross_between_devices(tmp_path, train):
    """A run resumes from the CPU on the GPU, and the other way round, to nearly the same weights."""
    options = ["--num_train_epochs", 4, "--max_train_samples", 400, "--save_total_limit", 9, "--optim", "sgd",
               "--learning_rate", 0.05, "--tf32", "false"]  # fmt: skip
    whole = train(*options, folder="whole")
    for first, then in (("true", "false"), ("false", "true")):
        run = finetune(tmp_path / f"cpu-{first}", *options, "--use_cpu", first)
        interrupt(run, keep=2)
        finetune(run, *options, "--use_cpu", then)
        assert_close(whole, run, atol=2e-2)


# --- the parts


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pixels_do_not_depend_on_the_device(name):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), generator=generator, dtype=torch.uint8)
    rows = torch.arange(64) * 7
    here, there = augment(images, rows, [name], 1, 2), augment(images.cuda(), rows, [name], 1, 2).cpu()
    differences = (here.int() - there.int()).abs()
    assert (differences > 1).double().mean() < 1e-4 and (differences > 0).double().mean() < 1e-2


WAITLESS = {
    "plain": [],
    "clipped": ["--max_grad_norm", 1.0],
    "augmented": ["--augment", *(AUGMENTATIONS.keys() - {"flip"})],
    "mixed": ["--mixup", 0.2, "--cutmix", 1.0],
    "averaged": ["--ema_decay", 0.9],
    "l1": ["--l1", 1e-5],
    "accumulated": ["--gradient_accumulation_steps", 2],
    "bf16": ["--bf16", "true"],
    "streamed": ["--data_engine", "stream", "--dataloader_num_workers", 2],
    "in parts": ["--auto_find_batch_size", "true"],
    "vit": VIT,
}


@pytest.mark.parametrize("options", WAITLESS.values(), ids=WAITLESS.keys())
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, options):
    """Checked from the third step on, from the batch on the host to the end of the optimizer's step."""
    step, after = ImageTrainer.training_step, ImageTrainer._maybe_log_save_evaluate

    def watched(self, *args, **kwargs):
        if self.state.global_step >= 2:
            torch.cuda.set_sync_debug_mode("error")
        return step(self, *args, **kwargs)

    def unwatched(self, *args, **kwargs):
        torch.cuda.set_sync_debug_mode("default")
        return after(self, *args, **kwargs)

    monkeypatch.setattr(ImageTrainer, "training_step", watched)
    monkeypatch.setattr(ImageTrainer, "_maybe_log_save_evaluate", unwatched)
    try:
        finetune(tmp_path / "run", *SHORT, "--per_device_train_batch_size", 32, "--logging_steps", 1000, *options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_torch_compile(train, measured):
    run = train("--torch_compile", "true", "--model", "mlp", "--num_train_epochs", 4, "--bf16", "true",
                "--dataloader_drop_last", "true", "--stages", '[{"train": "head"}, {"train": "all"}]')  # fmt: skip
    assert read_record(run)["test"]["accuracy"] > 0.8
    measured(difference_of_a_plain_pipeline=gate(run))


def test_fp16(train):
    base = train(*VIT, "--num_train_epochs", 3, folder="base")
    for method in ("lora", "adalora"):
        run = train("--model", base / "model", "--method", method, "--fp16", "true", "--num_train_epochs", 3,
                    folder=method)  # fmt: skip
        losses = [log["loss"] for log in json.loads(
            (run / "stages/0-adapters/trainer_state.json").read_text())["log_history"] if "loss" in log]  # fmt: skip
        assert losses and np.isfinite(losses).all()


def test_a_recurrent_network(train, digits28):
    run = train(*digits28, "--model", "rnn", "--max_train_samples", 5000, "--num_train_epochs", 1)
    assert read_record(run)["flops_per_image"] > 0


def test_the_data_lie_on_the_device(train, monkeypatch):
    placed, to = [], ImageTensors.to
    monkeypatch.setattr(ImageTensors, "to", lambda self, device: (to(self, device), placed.append(self.images.device)))
    train(*SHORT)
    assert placed and all(device.type == "cuda" for device in placed)


def test_saved_models_evaluate_alike_on_both_devices(train):
    run = train(*VIT, *SHORT, "--bf16", "true")
    model = Classifier.load(str(run)).model
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        here, there = model.eval()(images).logits, model.cuda()(images.cuda()).logits.cpu()
    np.testing.assert_allclose(there, here, atol=1e-3)
