"""A missing GPU is reported in one sentence before anything is written, and the advice leads to a run."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from support import REPO, train

from ftkit.owners import parse_evaluation

QUICK = ["--model", "mlp", "--max_steps", 1, "--eval_strategy", "no"]


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(n)`: torch finds n GPUs; no environment variable names any."""
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.delenv(name, raising=False)

    def find(count):
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)

    return find


@pytest.mark.parametrize(
    ("count", "environment", "options", "words"),
    [
        (0, {}, ["--use_cpu", "false"], ["use_cpu: false asks for a GPU", "none", "leave it out"]),
        (0, {"CUDA_VISIBLE_DEVICES": ""}, ["--use_cpu", "false"], ["use_cpu: false", "hides all"]),
        (
            1,
            {"ACCELERATE_USE_CPU": "true"},
            ["--use_cpu", "false"],
            ["use_cpu: false contradicts the launcher's file", "--config_file"],
        ),
        (0, {"CUDA_VISIBLE_DEVICES": "0"}, [], ["CUDA_VISIBLE_DEVICES: 0", "gpu_ids", "none", "cpu.yaml"]),
        (0, {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, [], ["CUDA_VISIBLE_DEVICES: GPU-8932f937", "none", "cpu.yaml"]),
        (1, {"CUDA_VISIBLE_DEVICES": "0,7"}, [], ["CUDA_VISIBLE_DEVICES: 0,7", "2 GPUs", "1 GPU", "name others"]),
        (0, {"LOCAL_WORLD_SIZE": "2"}, [], ["num_processes: 2", "none", "cpu.yaml", "--use_cpu true"]),
        (0, {"LOCAL_WORLD_SIZE": "1"}, [], ["num_processes: 1", "none", "cpu.yaml"]),
        (0, {"LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}, [], ["num_processes: 2", "hides all"]),
        (1, {"LOCAL_WORLD_SIZE": "2"}, [], ["num_processes: 2", "1 GPU", "--num_processes 1"]),
    ],
)
def test_a_missing_gpu_is_one_sentence(gpus, monkeypatch, tmp_path, refused, count, environment, options, words):
    gpus(count)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with refused(*words) as raised:
        train(tmp_path / "run", *QUICK, *options)
    assert str(raised.value).count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["--use_cpu", "true"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "ACCELERATE_USE_CPU": "True"}, []),
        ({"ACCELERATE_USE_CPU": "False"}, []),  # of a plain `accelerate launch`
    ],
)
def test_a_run_on_the_cpu_needs_no_gpu(gpus, monkeypatch, tmp_path, environment, options):
    gpus(0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train(tmp_path / "run", *QUICK, *options).stages[0]["steps"] == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("config", ["single_gpu", "multi_gpu", "fsdp", "cpu"])
def test_launcher_files_on_a_machine_without_a_gpu(tmp_path, config):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
              REPO / "accelerate_configs" / f"{config}.yaml", REPO / "recipes" / "finetune.py"]  # fmt: skip
    command = [*map(str, [*launch, *QUICK, "--output_dir", tmp_path / "run"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    shown = done.stdout + done.stderr
    if config == "cpu":
        assert done.returncode == 0 and (tmp_path / "run" / "run.json").is_file(), shown[-3000:]
        return
    assert done.returncode != 0 and "torch finds none" in shown, shown[-3000:]
    assert not (tmp_path / "run").exists()
    several = yaml.safe_load((REPO / "accelerate_configs" / f"{config}.yaml").read_text())["num_processes"] > 1
    assert ("--use_cpu true" in shown) == several


def test_an_evaluation_on_a_missing_gpu_is_refused(gpus, monkeypatch, refused, convnet):
    gpus(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with refused("CUDA_VISIBLE_DEVICES: 0", "cpu.yaml"):
        parse_evaluation(["--model", str(convnet), "--dataset", "digits"])
