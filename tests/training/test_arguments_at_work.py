"""Effects of training arguments that have no test file of their own."""

import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import KEEP_ALL, MLP, interrupt, losses, stage_results, train, train_log

from ftkit.tasks import SingleLabel
from ftkit.training.loop.trainer import ImageTrainer

# 48 images: batches of 32 and of 16.
SMALL = [*MLP, "--max_train_samples", 48, "--per_device_train_batch_size", 32, "--learning_rate", 0.05,
         "--num_train_epochs", 2, *KEEP_ALL]  # fmt: skip


def tensors(run):
    return load_file(run / "model" / "model.safetensors")


def last_step(run):
    return json.loads((run / "stages/0-all/trainer_state.json").read_text())["global_step"]


@pytest.fixture
def seen(monkeypatch):
    """The trainers of all stages."""
    trainers, train = [], ImageTrainer.train

    def spy(self, *args, **kwargs):
        trainers.append(self)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(ImageTrainer, "train", spy)
    return trainers


def test_each_image_of_accumulated_batches_counts_the_same(tmp_path):
    """32 and 16 images, accumulated, are one batch of 48."""
    options = [*SMALL, "--optim", "sgd", "--label_smoothing_factor", 0, "--logging_steps", 1]
    whole = train(tmp_path / "whole", *options, "--per_device_train_batch_size", 48).folder
    parts = train(tmp_path / "parts", *options, "--gradient_accumulation_steps", 2).folder
    for name, expected in tensors(whole).items():
        np.testing.assert_allclose(tensors(parts)[name], expected, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(losses(parts), losses(whole), atol=1e-5)


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_loss_that_is_not_finite_is_found_when_the_cache_is_emptied(tmp_path, monkeypatch, refused, on_nan):
    original, emptied = ImageTrainer.compute_loss, []

    def spoil(self, model, inputs, **options):
        loss = original(self, model, inputs, **options)
        return loss * float("nan") if model.training and self.state.global_step == 2 else loss

    monkeypatch.setattr(ImageTrainer, "compute_loss", spoil)
    monkeypatch.setattr("ftkit.training.loop.trainer.clear_device_cache", lambda: emptied.append(1))
    options = [*SMALL, "--torch_empty_cache_steps", 2, "--on_nan", on_nan]
    if on_nan == "stop":
        with refused("the loss is nan at step 3"):
            train(tmp_path / "run", *options)
    else:
        run = train(tmp_path / "run", *options).folder
        assert stage_results(run)[0]["updates_left_out"] == 1
        assert len(emptied) == 2  # of 4 steps


def test_a_resume_does_not_evaluate_on_start(tmp_path):
    """With a patience of 2, one more evaluation would end the run."""
    options = [*SMALL, "--num_train_epochs", 3, "--eval_on_start", "true", "--early_stopping_patience", 2,
               "--learning_rate", 0]  # fmt: skip
    whole = train(tmp_path / "whole", *options).folder
    part = shutil.copytree(whole, tmp_path / "part")
    assert [line["step"] for line in train_log(whole) if "eval_loss" in line] == [0, 2, 4, 6]
    interrupt(part, keep=2)
    train(part, *options)
    lines = [[line["step"] for line in train_log(run) if "eval_loss" in line] for run in (whole, part)]
    assert lines[0] == lines[1] and last_step(whole) == last_step(part) == 6


def test_a_stage_with_weights_only_starts_again(tmp_path, logged, refused):
    options = [*SMALL, "--save_only_model", "true", "--warmup_steps", 2]
    whole = train(tmp_path / "whole", *options).folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part, keep=1)
    (kept,) = part.glob("stages/*/checkpoint-*")
    assert not (kept / "optimizer.pt").exists()
    with refused("holds only weights (save_only_model: true)", "leave it out"):
        train(part, *options, "--resume_from_checkpoint", kept)
    train(part, *options)
    assert "save_only_model: true): the stage starts again" in logged()
    assert tensors(part).keys() == tensors(whole).keys()
    assert all(np.array_equal(tensors(part)[name], expected) for name, expected in tensors(whole).items())


def test_no_rollback_to_weights_alone(tmp_path, refused):
    with refused("on_nan: rollback needs the optimizer", "save_only_model: true"):
        train(tmp_path / "run", *SMALL, "--save_only_model", "true", "--on_nan", "rollback")


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("loss", "min")])
@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_plateau_schedule_knows_whether_higher_is_better(tmp_path, seen, schedule, metric, mode):
    train(tmp_path / "run", *SMALL, "--lr_scheduler_type", schedule, "--warmup_steps", 0,
          "--metric_for_best_model", metric)  # fmt: skip
    assert seen[0].lr_scheduler.mode == mode


def test_the_learning_rate_is_kept_while_accuracy_rises(tmp_path, seen, monkeypatch):
    rising = iter((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    others = dict.fromkeys(SingleLabel.validation(), 1.0)
    monkeypatch.setattr("ftkit.tasks.SingleLabel.validate", lambda *_: others | {"accuracy": next(rising)})
    train(tmp_path / "run", *SMALL, "--lr_scheduler_type", "reduce_lr_on_plateau", "--warmup_steps", 0,
          "--metric_for_best_model", "accuracy", "--lr_scheduler_kwargs", '{"patience": 0}')  # fmt: skip
    assert seen[0].optimizer.param_groups[0]["lr"] == 0.05


def test_every_stage_is_compiled(tmp_path, monkeypatch, seen):
    compiled, original = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compiled.append(model) or original(model, **options)
    )
    options = ["--torch_compile_backend", "eager", "--stages", '[{"train": "head"}, {"train": "all"}]']
    train(tmp_path / "run", *SMALL, "--num_train_epochs", 1, *options, "--cache_features", "false")
    assert [type(trainer.model_wrapped).__name__ for trainer in seen] == ["OptimizedModule"] * 2
    assert len(compiled) >= 2


@pytest.fixture(params=["galore", "apollo"])
def low_rank(request, monkeypatch):
    """A fake package of optimizers with parameter groups of their own; returns the name of one of them."""

    class Optimizer(torch.optim.AdamW):
        """Takes options of groups that AdamW does not know."""

    name = request.param
    package = ModuleType(f"{name}_torch")
    for known in ("GaLoreAdafactor", "GaLoreAdamW", "GaLoreAdamW8bit", "APOLLOAdamW"):
        setattr(package, known, Optimizer)
    monkeypatch.setitem(sys.modules, f"{name}_torch", package)
    monkeypatch.setattr(f"transformers.trainer_optimizer.is_{name}_torch_available", lambda: True)
    return f"{name}_adamw"


def test_optimizers_with_groups_of_their_own_get_rates_and_decay(tmp_path, seen, low_rank):
    options = ["--optim", low_rank, "--optim_target_modules", "all-linear", "--optim_args", "rank=2"]
    train(tmp_path / "run", *SMALL, *options, "--layer_decay", 0.5, "--weight_decay", 0.1, "--head_lr_multiplier", 3)
    trainer, found = seen[0], {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["initial_lr"], group["weight_decay"], group.get("rank"))
    for name, parameter in trainer.model.named_parameters():
        rate = 0.15 if name.startswith("classifier") else 0.025
        expected = (rate, 0.1, 2) if name.endswith("weight") else (rate, 0.0, None)
        assert found[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_within_the_backward_pass(tmp_path, refused, optim):
    with refused(f"optim: {optim} changes weights before all gradients are known", "use adamw_torch"):
        train(tmp_path / "run", *SMALL, "--optim", optim)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim", "galore_adamw", "--optim_target_modules", "all-linear"], "optim: galore_adamw"),
        (["--optim", "sgd", "--optim_args", "momentun=0.9"], "sgd has no option 'momentun': it takes momentum"),
        (["--optim_args", "betas=0.9"], "it takes none"),
        (["--lr_scheduler_kwargs", '{"x": 1}'], "lr_scheduler_type: cosine, lr_scheduler_kwargs"),
        (["--activation_checkpointing", "true"], "activation_checkpointing: ftkit_mlp does not support it"),
    ],
)
def test_an_optimizer_or_schedule_with_wrong_arguments_is_refused_before_the_start(tmp_path, refused, options, words):
    with refused(words):
        train(tmp_path / "run", *SMALL, *options)
    assert not (tmp_path / "run").exists()
