"""One precision per run, from any source: recorded, compared, and absent from saved weights."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from support import (
    KEEP_ALL,
    REPO,
    TINY,
    assert_reloads,
    assert_saved_is_trained,
    finetune,
    interrupt,
    load_recipe_script,
    train,
    weights,
)
from transformers import AutoConfig, AutoModelForImageClassification

from ftkit.errors import ConfigError
from ftkit.evaluation.comparing import group_runs, read_run
from ftkit.evaluation.report import read_record
from ftkit.hub.parity import check_parity
from ftkit.owners import parse_config

LAUNCHER = "ACCELERATE_MIXED_PRECISION"
QUICK = [*TINY, "--max_train_samples", 300]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No launcher, and an empty working folder."""
    monkeypatch.delenv(LAUNCHER, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A run with bf16 set by the launcher alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LAUNCHER, "bf16")
        return finetune(tmp_path_factory.mktemp("launched") / "run", *QUICK)


def parse(tmp_path, deepspeed=None, **values):
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    if deepspeed is not None:
        (tmp_path / "ds.json").write_text(json.dumps(deepspeed))
        words += ["--deepspeed", str(tmp_path / "ds.json")]
    return parse_config(["--dataset", "digits", *words])


@pytest.mark.parametrize(
    ("launcher", "values", "expected"),
    [
        (None, {}, "fp32"),
        ("no", {}, "fp32"),
        ("bf16", {}, "bf16"),
        ("no", {"bf16": "true"}, "bf16"),  # a plain launch exports `no` without being asked
        ("bf16", {"bf16": "true"}, "bf16"),
        ("bf16", {"fp16": "false"}, "bf16"),
        (None, {"bf16": "false"}, "fp32"),
    ],
)
def test_each_source_sets_the_precision(tmp_path, monkeypatch, launcher, values, expected):
    if launcher:
        monkeypatch.setenv(LAUNCHER, launcher)
    config = parse(tmp_path, **values)
    args, saved = config.training, yaml.safe_load(config.to_yaml())
    assert (args.bf16, args.fp16) == (saved["bf16"], saved["fp16"]) == (expected == "bf16", expected == "fp16")
    assert args.mixed_precision == {"fp32": "no"}.get(expected, expected)


@pytest.mark.parametrize(
    ("launcher", "values", "words"),
    [
        (
            "bf16",
            {"bf16": "false"},
            ["bf16", "false by the recipe", "launcher (mixed_precision: bf16)"],
        ),
        ("fp16", {"bf16": "true"}, ["bf16", "true by the recipe", "launcher (mixed_precision: fp16)"]),
        ("fp8", {}, ["fp8", "launch with no, bf16 or fp16"]),
        ("no", {"bf16": "true", "fp16": "true"}, ["bf16", "fp16", "keep one"]),
        ("bf16", {"deepspeed": {"bf16": {"enabled": False}}}, ["bf16", "ds.json", "launcher"]),
        ("no", {"deepspeed": {"fp16": {"enabled": True}}, "fp16": "false"}, ["fp16", "ds.json", "command line"]),
    ],
)
def test_a_contradiction_names_both_sides(tmp_path, monkeypatch, launcher, values, words):
    monkeypatch.setenv(LAUNCHER, launcher)
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, **values)
    assert any(all(word in error for word in words) for error in caught.value.errors), caught.value.errors


def test_the_launchers_precision_is_recorded_and_repeated(launched, tmp_path, monkeypatch):
    assert read_record(launched)["precision"] == "bf16"
    repeated = parse_config(["--config", str(launched / "config.yaml")])
    assert repeated.training.mixed_precision == "bf16"
    monkeypatch.setenv(LAUNCHER, "fp16")
    with pytest.raises(ConfigError, match="launcher"):
        parse_config(["--config", str(launched / "config.yaml")])


def test_a_run_in_bf16_stores_what_an_evaluation_in_float32_gives(launched):
    assert_reloads(launched)


@pytest.mark.slow
def test_a_run_in_bf16_stores_what_a_plain_pipeline_gives(launched):
    assert check_parity(launched / "model", launched / "evaluation", read_record(launched)) < 1e-4


def test_runs_of_two_precisions_are_two_methods(launched, tmp_path):
    other = finetune(tmp_path / "run", *QUICK)
    assert len(group_runs([read_run(launched), read_run(other)])) == 2


def test_a_resume_in_another_precision_is_refused(tmp_path, monkeypatch, refused):
    whole = train(tmp_path / "whole", *QUICK, "--bf16", "true", *KEEP_ALL).folder
    expected = weights(whole)
    interrupt(whole)
    with refused("bf16", "another configuration"):
        train(whole, *QUICK, *KEEP_ALL)
    monkeypatch.setenv(LAUNCHER, "bf16")  # the same precision from another source
    train(whole, *QUICK, *KEEP_ALL)
    assert weights(whole) == expected


def test_autocast_is_removed_after_a_stage(mlp, tmp_path, monkeypatch):
    """Merging compares logits in float32, even after stages under autocast."""
    job = train(tmp_path / "lora", "--model", mlp, "--method", "lora", "--merge_adapters", "true",
                "--bf16", "true", "--stages", '[{"train": "head"}, {"train": "adapters"}]', *QUICK)  # fmt: skip
    assert_saved_is_trained(job)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_trains_and_is_saved_in_float32(tmp_path, digits_run, dtype):
    base = tmp_path / "base"
    model = AutoModelForImageClassification.from_pretrained(digits_run / "model", dtype=dtype)
    model.save_pretrained(base)
    (base / "preprocessor_config.json").write_text((digits_run / "model/preprocessor_config.json").read_text())
    run = train(tmp_path / "run", "--model", base, "--method", "full", "--learning_rate", 3e-5, *QUICK).folder
    assert AutoConfig.from_pretrained(run / "model").dtype == torch.float32
    before, after = load_file(base / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float32}
    kernels = [name for name in after if name.endswith("convolution.weight")]
    moved = [(after[name] != before[name].float()).double().mean().item() for name in kernels]
    assert kernels and min(moved) > 0.9  # in 16 bits two thirds would not change


def test_an_evaluation_is_in_float32_whatever_the_launcher_says(digits_run, tmp_path, monkeypatch):
    monkeypatch.setenv(LAUNCHER, "bf16")
    load_recipe_script("eval").main(["--model", str(digits_run), "--output_dir", str(tmp_path / "again")])
    first, again = ((place / "metrics.json").read_text() for place in (digits_run / "evaluation", tmp_path / "again"))
    losses = [json.loads(text)["negative_log_likelihood"] for text in (first, again)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_adapters_of_a_run_in_bf16_are_saved_in_float32(tmp_path):
    base = train(tmp_path / "base", "--model", "mlp", *QUICK).folder
    run = train(tmp_path / "lora", "--model", base / "model", "--method", "lora", "--bf16", "true", *QUICK).folder
    with safe_open(run / "model" / "adapter_model.safetensors", "pt") as saved:
        assert {saved.get_tensor(name).dtype for name in saved.keys()} == {torch.float32}  # noqa: SIM118


def test_exact_float32_restores_all_settings():
    """A backend reports its inherited setting; writing that back would override a later `tf32: false`."""
    start = ["import torch", "from ftkit.precision import exact_float32", "conv = torch.backends.cudnn.conv"]
    fresh = ["print(conv.fp32_precision)", "torch.backends.fp32_precision = 'ieee'", "print(conv.fp32_precision)"]
    block = ["torch.backends.fp32_precision = 'none'", "with exact_float32():", "    print(conv.fp32_precision)"]
    command = [sys.executable, "-c", "\n".join([*start, *fresh, *block, *fresh])]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=True).stdout.split()
    assert printed[2] == "ieee" and printed[3:] == printed[:2]


def test_every_stage_trains_in_the_precision_of_the_run(tmp_path, monkeypatch):
    seen, forward = [], torch.nn.Linear.forward

    def watched(self, values):
        out = forward(self, values)
        if self.training and len(values) > 2:  # the first forward pass, of two images, is in float32
            seen.append(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    stages = '[{"train": "head"}, {"train": "all"}, {"train": "all"}]'
    train(
        tmp_path / "run", "--model", "mlp", "--stages", stages, "--cache_features", "false", "--bf16", "true", *QUICK
    )
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_keys_that_a_deepspeed_file_cannot_set(tmp_path, monkeypatch, key):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=f"ds.json: its {key} would be ignored: remove it there, and set"):
        parse(tmp_path, deepspeed={"zero_optimization": {"stage": 2}, key: {"type": "Adam"}})
