"""Training and all other jobs on a device that is not the CPU; no training step waits for it."""

import json
import math
import shutil
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pretend_device import pretend_device
from support import KEEP_LAST, finetune, interrupt, load_recipe_script, losses, train, weights

from ftkit.data.augmentation.augment import AUGMENTATIONS
from ftkit.evaluation.predictions import read_predictions
from ftkit.hub.parity import check_parity
from ftkit.models import flops
from ftkit.models.classifier import Classifier
from ftkit.run import evaluate
from ftkit.training.loop.trainer import ImageTrainer

# 64 training images: 4 steps an epoch.
BINARY = ["--classes", 0, 1, "--max_train_samples", 64, "--per_device_train_batch_size", 16, "--num_train_epochs", 2,
        "--learning_rate", 0.003]  # fmt: skip
SMALL = ["--model", "mlp"]
AUGMENT = [name for name in AUGMENTATIONS if name != "flip"]  # with which alternating_flip would be refused


@pytest.fixture
def pretended():
    """The pretended device, used by everything in the test."""
    with pretend_device() as pretended:
        yield pretended


@pytest.fixture
def waits(pretended, monkeypatch):
    """What training steps wait for, except the first one and those that log, evaluate or save."""
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
        pytest.param(["--model", "convnet"], id="convnet"),
        pytest.param(["--mixup", 0.2, "--cutmix", 1.0, "--ema_decay", 0.9, "--l1", 1e-5, "--dropout", 0.1], id="loss"),
        pytest.param(["--augment", *AUGMENT], id="augment"),
        pytest.param(["--gradient_accumulation_steps", 2, "--max_grad_norm", 0], id="accumulation"),
        pytest.param(["--auto_find_batch_size", "true"], id="auto_find_batch_size"),
        pytest.param(["--on_nan", "skip"], id="skip"),
        pytest.param(["--on_nan", "skip", "--optim", "adamw_torch"], id="skip, an optimizer that counts on the host"),
        pytest.param(["--on_nan", "rollback"], id="rollback"),
        pytest.param(["--data_engine", "stream", "--dataloader_num_workers", 0, "--augment", "flip"], id="stream"),
        pytest.param(["--model", "timm/test_resnet", "--augment", "flip", "--num_train_epochs", 1], id="resnet"),
        pytest.param(["--model", "timm/test_vit", "--image_size", 16, "--num_train_epochs", 1], id="vit"),
    ],
)
def test_training_waits_for_nothing(tmp_path, waits, options):
    assert train(tmp_path / "run", *BINARY, *SMALL, *options).stages
    assert waits == {}


@pytest.mark.parametrize("optim", [[], ["--optim", "timm/momentum", "--optim_args", "momentum=0.9"]])
def test_an_update_is_skipped_as_on_the_cpu(tmp_path, monkeypatch, optim):
    """Weights, momentum and log equal those of the CPU, on which the host sees the gradient."""
    original = ImageTrainer.compute_loss

    def compute_loss(self, model, inputs, **options):
        loss = original(self, model, inputs, **options)
        return loss * float("nan") if model.training and self.state.global_step + 1 in (1, 3, 6) else loss

    monkeypatch.setattr(ImageTrainer, "compute_loss", compute_loss)
    options = [*BINARY, *SMALL, *optim, *KEEP_LAST, "--on_nan", "skip"]
    here = train(tmp_path / "here", *options)
    with pretend_device():
        there = train(tmp_path / "there", *options)
    assert weights(here.folder) == weights(there.folder)
    for job in (here, there):
        assert job.stages[0]["updates_left_out"] == 3
        assert all(map(math.isfinite, losses(job.folder)))


FINE_TUNING = [*BINARY, "--max_train_samples", 32]


@pytest.mark.parametrize(
    "options",
    [
        ["convnet", "full"],
        ["convnet", "linear_probe"],
        ["mlp", "lp_ft"],
        ["mlp", "bitfit"],
        ["convnet", "norm_tuning"],
        ["mlp", "lora", "--merge_adapters", "true", "--adapter_args", '{"r": 2}'],
        ["convnet", "dora", "--adapter_args", '{"r": 2}'],
        ["mlp", "adalora", "--num_train_epochs", 4],
    ],
    ids=lambda options: options[1],
)
def test_fine_tuning_waits_for_nothing(tmp_path, waits, request, options):
    base, *method = options
    options = ["--model", request.getfixturevalue(base), "--method", *method]
    assert train(tmp_path / "run", *FINE_TUNING, *options).stages
    assert waits == {}


# --- the other jobs

AVERAGED = [*BINARY, "--ema_decay", 0.9, "--augment", *AUGMENT, "--save_total_limit", 9]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A finished run on the CPU."""
    return finetune(tmp_path_factory.mktemp("here") / "run", *AVERAGED)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """The same run on the pretended device."""
    with pretend_device():
        return finetune(tmp_path_factory.mktemp("there") / "run", *AVERAGED)


def test_a_run_equals_that_of_the_cpu(here, there):
    """Byte for byte, as the pretended device computes on the CPU: no random number depends on the device."""
    for name in ("model/model.safetensors", "evaluation/predictions.parquet", "evaluation/metrics.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name


@pytest.mark.parametrize("first", ["here", "there"])
def test_a_run_resumes_on_another_device(tmp_path, request, first):
    """From the CPU to the pretended device, and the other way round."""
    run = tmp_path / "run"
    shutil.copytree(request.getfixturevalue(first), run)
    expected = weights(run)
    interrupt(run)
    with pretend_device() if first == "here" else nullcontext():
        train(run, *AVERAGED)
    assert weights(run) == expected


def test_an_evaluation_repeats_the_stored_predictions(pretended, there, tmp_path):
    options = ["--test_time_augmentation", "flip_and_shift", "--output_dir", str(tmp_path / "again")]
    load_recipe_script("eval").main(["--model", str(there), *options])
    stored, again = (read_predictions(folder) for folder in (there / "evaluation", tmp_path / "again"))
    np.testing.assert_allclose(again.logits, stored.logits, atol=1e-5)


def test_each_image_is_a_row_of_predictions(pretended, there, capsys):
    samples = sorted(map(str, (there / "evaluation" / "samples").iterdir()))
    assert load_recipe_script("predict").main(["--model", str(there), "--format", "csv", *samples]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(samples)


def test_an_export_is_written(pretended, there, tmp_path):
    options = ["--format", "torch_export", "--max_images", "8", "--repeats", "1"]
    load_recipe_script("export").main(["--model", str(there), *options, "--output_dir", str(tmp_path / "out")])
    assert list((tmp_path / "out").glob("*.pt2"))


def test_reports_and_comparisons_are_written(pretended, here, there, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(there, run)
    (run / "evaluation" / "report.html").unlink()
    load_recipe_script("report").main([str(run)])
    assert (run / "evaluation" / "report.html").is_file()
    load_recipe_script("compare").main([str(run), str(here), "--output_dir", str(tmp_path / "comparison")])
    assert (tmp_path / "comparison" / "comparison.html").is_file()


@pytest.mark.slow
def test_push_accepts_the_model(pretended, there):
    record = json.loads((there / "run.json").read_text())
    check_parity(there / "model", there / "evaluation", record)


def test_the_demo_answers(pretended, there):
    demo = pytest.importorskip("ftkit.demo.answers", exc_type=ImportError)
    classifier = demo.Demo(Classifier.load(str(there)))
    assert sum(classifier(Image.new("L", (8, 8))).values()) == pytest.approx(1)


# --- what a GPU cannot or should not do


def test_logits_do_not_gather_on_the_device(tmp_path, pretended):
    """An evaluation moves many logits to the host in between; the metrics are the same."""
    copies, scores = [], []
    for often in ([], ["--eval_accumulation_steps", 2]):
        before = pretended.waits.copy()
        options = [*BINARY, *SMALL, "--per_device_eval_batch_size", 8, "--num_train_epochs", 1, *often]
        job = train(tmp_path / str(len(copies)), *options)
        evaluate(job)
        assert job.config.training.eval_accumulation_steps == (2 if often else (1 << 24) // (8 * 2))  # two classes
        copied = {where: n for where, n in (pretended.waits - before).items() if "copy to the CPU" in where}
        copies.append(sum(copied.values()))
        scores.append(job.stages[0]["best_metric"])
    assert copies[1] > copies[0] + 6  # 29 images for validation, 72 for test
    assert scores[1] == pytest.approx(scores[0], abs=1e-12)


def test_one_of_several_gpus_is_used(tmp_path, pretended, monkeypatch, capsys):
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 4)
    finetune(tmp_path / "run", *BINARY, *SMALL, "--num_train_epochs", 1)
    shown = capsys.readouterr().out
    assert "of 4 GPUs" in shown and "multi_gpu.yaml --num_processes 4" in shown


def test_no_other_gpu_is_initialised(tmp_path, convnet, monkeypatch):
    """Trying out adapters and batches saves the random state of one device, not of all."""
    fork = torch.random.fork_rng

    def fork_named(devices=None):
        assert devices is not None
        return fork(devices)

    monkeypatch.setattr(torch.random, "fork_rng", fork_named)
    with pretend_device():
        options = ["--method", "lora", "--adapter_args", '{"r": 2}', "--auto_find_batch_size", "true"]
        train(tmp_path / "run", *FINE_TUNING, "--model", convnet, *options)


@pytest.fixture
def deterministic():
    """`full_determinism`, whose setting for the whole process is undone afterwards."""
    yield ["--full_determinism", "true"]
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_full_determinism_trains_and_evaluates(tmp_path, pretended, deterministic, pooling):
    options = ["--augment", *AUGMENT, "--model_args", json.dumps({"pooling": pooling, "downsampling": "max_pool"})]
    job = train(tmp_path / "run", *BINARY, "--num_train_epochs", 1, *deterministic, *options)
    evaluate(job)
    assert len(job.predicted["plain"]) == 72


def test_an_operation_without_a_deterministic_version_is_named(tmp_path, deterministic, monkeypatch, refused):
    def backward(self, *args):
        raise RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you …")

    monkeypatch.setattr(ImageTrainer, "_backward", backward)
    with refused("full_determinism", "adaptive_max_pool2d_backward_cuda does not have", "leave it out"):
        train(tmp_path / "run", *BINARY, *deterministic)


def test_flops_do_not_depend_on_the_device(pretended, mlp):
    """On a GPU a recurrent layer is a single operation, which is not counted."""
    model = Classifier.load(str(mlp)).model
    images = torch.zeros(1, 1, 8, 8)
    expected, seen = flops.flops_per_image(model, images), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["pixel_values"].device), with_kwargs=True)
    assert flops.flops_per_image(model.to(pretended.device), images) == expected > 0
    assert [device.type for device in seen] == ["cpu"]
