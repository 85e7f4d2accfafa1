"""Each mechanism of ftkit in two processes, with unsharded weights (DDP) or sharded ones: it works, or is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from mechanisms import MECHANISMS, run_pair
from safetensors.numpy import load_file
from support import REPO

from ftkit.owners import parse_config

pytestmark = pytest.mark.slow
SGD = ["--optim", "sgd", "--learning_rate", "0.1", "--weight_decay", "0"]
WHOLE = {"ema": "ema_decay: 0.5", "adalora": "method: adalora", "skip": "on_nan: skip", "rollback": "on_nan: rollback",
         "auto": "auto_find_batch_size: True"}  # fmt: skip


@pytest.fixture(scope="module", params=["multi_gpu", "fsdp", "deepspeed_zero2"])
def outcomes(request, mlp, tmp_path_factory):
    """The launcher's configuration, and a folder with the outcome of each mechanism in each of two processes."""
    if "deepspeed" in request.param:
        pytest.importorskip("deepspeed", exc_type=ImportError)
    folder = tmp_path_factory.mktemp(request.param)
    config = yaml.safe_load((REPO / "accelerate_configs" / f"{request.param}.yaml").read_text())
    ddp = request.param == "multi_gpu"
    config |= {"num_processes": 2, "mixed_precision": "no", "use_cpu": ddp}
    config.pop("gpu_ids", None)
    (folder / "launch.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", folder / "launch.yaml",
               REPO / "tests" / "distributed_mechanisms.py", folder, mlp, *MECHANISMS, "--", *SGD, "--use_cpu",
               str(ddp).lower()]  # fmt: skip
    variables = {} if ddp else {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=500, env=os.environ | variables
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return request.param, folder


@pytest.mark.parametrize("name", MECHANISMS)
def test_it_works_in_both_or_is_refused(outcomes, mlp, tmp_path, name):
    config, folder = outcomes
    first, second = ((folder / f"{name}-{rank}").read_text() for rank in (0, 1))
    if config != "multi_gpu" and name in WHOLE:
        assert f"{WHOLE[name]} needs unsharded weights" in first and first == second
        return
    assert first.startswith("works") and first == second, first  # and the processes have the same weights
    if name in ("ema", "accumulation", "auto", "compile"):
        run_pair(tmp_path / "one", mlp, (name,), "--per_device_train_batch_size", 20, *SGD)
        expected, found = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "one", folder / name))
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, atol=1e-5, err_msg=key)


def test_a_model_is_not_sharded_twice(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("fsdp", "deepspeed"):
        parse_config(["--dataset", "digits", "--fsdp", "true", "--deepspeed", '{"zero_optimization": {"stage": 2}}'])


def test_the_first_fsdp_is_refused(monkeypatch, refused):
    """The launcher takes it for a file that names no version."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with refused("fsdp_version: 1", "set fsdp_version: 2"):
        parse_config(["--dataset", "digits"])
