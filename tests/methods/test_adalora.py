"""AdaLoRA's pruning schedule covers all stages that train adapters, and resumes within any of them."""

import ast
import json
import shutil

import pytest
from safetensors.torch import load_file
from support import KEEP_ALL, KEEP_LAST, REPO, assert_saved_is_trained, finetune, interrupt, train, weights

from ftkit.training.loop.trainer import ImageTrainer

# 3 steps per epoch, 9 in the stages of adapters; pruning ends after the 6th.
OPTIONS = ["--max_train_samples", 96, "--per_device_train_batch_size", 32, "--method", "adalora", "--learning_rate",
           0.02, *KEEP_ALL, "--warmup_steps", 0, "--adapter_args",
           json.dumps({"deltaT": 1, "init_r": 6, "target_r": 2})]  # fmt: skip
STAGES = ["--num_train_epochs", 1, "--stages",
          '[{"train": "head"}, {"train": "adapters"}, {"train": "adapters", "num_train_epochs": 2}]']  # fmt: skip
ACCURACY = ["--metric_for_best_model", "accuracy"]


def ranks(file):
    """How many ranks are left of how many, over all layers."""
    values = [value for name, value in load_file(file).items() if "lora_E" in name]
    return sum((value != 0).sum().item() for value in values), sum(value.numel() for value in values), len(values)


def test_pruning_covers_all_stages_of_adapters(mlp, tmp_path):
    job = train(tmp_path / "run", *OPTIONS, *STAGES, *KEEP_LAST, "--model", mlp)
    run, left = job.folder, []
    for stage, steps in (("1-adapters", (3,)), ("2-adapters", (3, 6))):
        left += [ranks(run / "stages" / stage / f"checkpoint-{step}" / "model.safetensors") for step in steps]
    _, whole, layers = left[0]
    counts = [count for count, *_ in left]
    assert 6 * layers == whole > counts[0] > counts[1] == counts[2] == 2 * layers
    assert ranks(run / "model" / "adapter_model.safetensors")[0] == 2 * layers
    assert_saved_is_trained(job)


@pytest.mark.parametrize("best", [[], KEEP_LAST], ids=["best", "last"])
def test_a_resume_in_the_last_stage_gives_the_same_bytes(mlp, tmp_path, best):
    arguments = [*OPTIONS, *STAGES, *best, "--model", mlp]
    whole = train(tmp_path / "whole", *arguments).folder
    for keep in (0, 1):
        part = shutil.copytree(whole, tmp_path / str(keep))
        interrupt(part, keep=1)
        if not keep:
            shutil.rmtree(part / "stages" / "2-adapters")
        train(part, *arguments)
        assert weights(part, "adapter_model") == weights(whole, "adapter_model")


def test_a_stage_of_the_head_prunes_no_ranks(mlp, tmp_path):
    stages = [{"train": "head"}, {"train": "adapters", "num_train_epochs": 4}, {"train": "head"}]
    job = train(tmp_path / "run", *OPTIONS, *KEEP_LAST, "--model", mlp, "--augment", "translate",
                "--num_train_epochs", 1, "--stages", json.dumps(stages))  # fmt: skip
    left, _, layers = ranks(job.folder / "stages" / "2-head" / "model.safetensors")
    assert left == 2 * layers
    assert_saved_is_trained(job)


ACCUMULATED = ["--gradient_accumulation_steps", 2, "--num_train_epochs", 3]


@pytest.mark.parametrize("options", [["--max_steps", 7], ACCUMULATED], ids=["max_steps", "accumulated"])
def test_the_schedule_counts_optimizer_steps(mlp, tmp_path, options):
    stages = ["--stages", '[{"train": "adapters"}, {"train": "adapters"}]']
    job = train(tmp_path / "run", *OPTIONS, *KEEP_LAST, *stages, "--model", mlp, *options)
    left, _, layers = ranks(job.folder / "model" / "adapter_model.safetensors")
    assert left == 2 * layers
    config = json.loads((job.folder / "model" / "adapter_config.json").read_text())
    assert sum(stage["steps"] for stage in job.stages) == config["total_step"]


def test_a_warning_if_the_chosen_weights_are_from_before_the_last_pruning(mlp, tmp_path, logged):
    """Early stopping and validation may choose them."""
    stop = ["--early_stopping_patience", 1, *ACCURACY, "--num_train_epochs", 20, "--learning_rate", 1e-6]
    job = train(tmp_path / "run", *OPTIONS, "--model", mlp, *stop)
    left, whole, layers = ranks(job.folder / "model" / "adapter_model.safetensors")
    assert left > 2 * layers
    told = f"{left} of {whole} ranks are left, and target_r: 2 means {2 * layers}"
    assert told in logged()
    assert_saved_is_trained(job)


def test_the_next_stage_catches_up_after_one_that_stopped_early(mlp, tmp_path):
    """Pruning should have ended within the steps that the first stage did not take."""
    stages = [{"train": "adapters", "num_train_epochs": 9, "learning_rate": 1e-6}, {"train": "adapters"}]
    job = train(tmp_path / "run", *OPTIONS, *ACCURACY, "--model", mlp, "--early_stopping_patience", 1,
                "--num_train_epochs", 2, "--stages", json.dumps(stages))  # fmt: skip
    left, _, layers = ranks(job.folder / "model" / "adapter_model.safetensors")
    assert left == 2 * layers


def test_skipped_updates_prune_no_ranks(mlp, tmp_path, monkeypatch):
    original = ImageTrainer.compute_loss

    def compute_loss(self, model, inputs, **options):
        loss = original(self, model, inputs, **options)
        return loss * float("nan") if model.training and self.state.global_step + 1 in (2, 4) else loss

    monkeypatch.setattr(ImageTrainer, "compute_loss", compute_loss)
    job = train(tmp_path / "run", *OPTIONS, *KEEP_LAST, "--model", mlp, "--num_train_epochs", 2, "--on_nan", "skip")
    left, _, layers = ranks(job.folder / "model" / "adapter_model.safetensors")
    assert left == 2 * layers  # although pruning should end in the 4th of 6 steps, which is skipped


@pytest.mark.parametrize("target", [6, 9])
def test_a_target_that_prunes_nothing_is_refused(mlp, tmp_path, refused, target):
    args = json.dumps({"init_r": 6, "target_r": target})
    with refused("adapter_args: target_r", target, "init_r", 6):
        finetune(tmp_path / "run", *OPTIONS, "--model", mlp, "--adapter_args", args)


def test_only_its_module_and_its_row_name_adalora():
    """The rest of ftkit asks what hooks an adapter has."""
    found = set()
    for path in sorted((REPO / "ftkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                imported.append(node.module or "")
            named = isinstance(node, ast.Constant) and node.value in ("adalora", "ADALORA")
            if named or any("adalora" in name.lower() for name in imported):
                found.add(str(path.relative_to(REPO / "ftkit")))
    assert found == {"methods/adalora.py", "methods/adapter_kinds.py", "compat/peft.py"}  # PEFT's own part of it
