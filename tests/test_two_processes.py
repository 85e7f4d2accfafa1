"""Two gloo processes on one machine train as one process with twice the batch does, and resume after being killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from disk_harness import PAGE, Disk, can_mount
from safetensors.numpy import load_file
from support import KEEP_ALL, LEARNS, MLP, REPO, finetune, weights

from ftkit.evaluation.predictions import read_predictions

# The last batch has 39 images, which two processes cannot share evenly.
OPTIONS = [*MLP, *KEEP_ALL, "--max_train_samples", 295, "--num_train_epochs", 6, "--optim", "sgd",
           "--learning_rate", 0.1, "--label_smoothing_factor", 0.1, "--augment", "translate"]  # fmt: skip


@pytest.fixture(scope="module")
def launch_two(tmp_path_factory):
    """`launch_two(folder, *options)` starts two processes, and returns the launcher's.

    The list `of` replaces `OPTIONS`, and `script` replaces recipes/finetune.py.
    """
    config = yaml.safe_load((REPO / "accelerate_configs" / "multi_gpu.yaml").read_text())
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    config.pop("gpu_ids")
    path = tmp_path_factory.mktemp("two") / "two.yaml"
    path.write_text(yaml.safe_dump(config))

    def start(folder, *options, before=None, of=OPTIONS, script=(REPO / "recipes" / "finetune.py",)):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path, script[0], *LEARNS, *of,
                   "--per_device_train_batch_size", 32, "--use_cpu", "true", *options, "--output_dir", folder,
                   *script[1:]]  # fmt: skip
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                preexec_fn=before)  # fmt: skip

    return start


@pytest.fixture(scope="module")
def two(launch_two, tmp_path_factory):
    """A finished run of two processes."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    shown, _ = (process := launch_two(folder, "--dropout", 0)).communicate(timeout=300)
    assert process.returncode == 0, shown[-3000:]
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one_does(two, tmp_path):
    one = finetune(tmp_path / "one", *OPTIONS, "--per_device_train_batch_size", 64, "--dropout", 0)
    saved = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    for name in saved[0]:
        np.testing.assert_allclose(saved[1][name], saved[0][name], atol=1e-5, err_msg=name)
    first, second = (read_predictions(run / "evaluation") for run in (one, two))
    assert np.array_equal(first.index, second.index) and np.array_equal(first.labels, second.labels)  # none twice
    np.testing.assert_allclose(second.logits, first.logits, atol=1e-4)
    losses = [[log["loss"] for log in json.loads((run / "stages/0-all/trainer_state.json").read_text())["log_history"]
               if "loss" in log] for run in (one, two)]  # fmt: skip
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    records = [json.loads((run / "run.json").read_text()) for run in (one, two)]
    assert [record["processes"] for record in records] == [1, 2]
    assert records[0]["stages"][0]["steps"] == records[1]["stages"][0]["steps"] == 6 * 5


# 135 images in batches of 64: the last 7 are split into 4 and 3.
NORMS = ["--max_train_samples", 135, "--num_train_epochs", 2, "--optim", "sgd", "--learning_rate", 0.05,
         "--save_total_limit", 9]  # fmt: skip
SMALL = ["--model", "convnet", "--model_args", '{"hidden_sizes": [8, 8], "depths": [0, 0]}', "--dropout", 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--bf16", "true"], ["--gradient_accumulation_steps", 2], ["--ema_decay", 0.8], ["--eval_strategy", "no"]],
    ids=["plain", "bf16", "accumulated", "averaged", "last weights"],
)
def test_every_process_evaluates_the_same_model(launch_two, tmp_path, options):
    """That includes running statistics of BatchNorm, which each process updates with its own images."""
    (tmp_path / "watched").mkdir()
    script = (REPO / "tests" / "watched.py", tmp_path / "watched")
    process = launch_two(tmp_path / "run", *SMALL, *options, of=NORMS, script=script)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown[-3000:]
    first, second = ((tmp_path / "watched" / f"{rank}.txt").read_text().split() for rank in range(2))
    evaluations = 0 if "no" in options else 2
    assert first == second and len(first) == evaluations + 2  # and test and validation at the end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision"),
    [(name, "fp32") for name in ("norm_tuning", "bitfit", "linear_probe", "surgical")] + [("norm_tuning", "bf16")],
)
def test_with_frozen_statistics_two_processes_train_as_one_does(launch_two, convnet, tmp_path, method, precision):
    options = ["--model", convnet, "--method", method, *(["--bf16", "true"] if precision == "bf16" else [])]
    options += ["--surgical_groups", "stem.convolution", "classifier"] if method == "surgical" else []
    shown, _ = (process := launch_two(tmp_path / "two", *options, of=NORMS)).communicate(timeout=300)
    assert process.returncode == 0, shown[-3000:]
    finetune(tmp_path / "one", *NORMS, *options, "--per_device_train_batch_size", 64)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=5e-3 if precision == "bf16" else 1e-5, err_msg=name)


@pytest.mark.slow
def test_the_learning_rate_follows_the_number_of_processes(launch_two, two, tmp_path):
    options = ["--dropout", 0, "--learning_rate", 0.05, "--scale_lr", "linear"]
    shown, _ = (process := launch_two(tmp_path / "run", *options)).communicate(timeout=300)
    assert process.returncode == 0 and "a step takes 64 images, 2 × 32; learning rates × 2 (scale_lr: linear)" in shown
    models = [weights(folder) for folder in (two, tmp_path / "run")]
    assert models[0] == models[1]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=lambda signum: signum.name)
def test_a_run_that_loses_a_process_resumes_to_the_same_model(launch_two, two, tmp_path, signum, refused):
    """One of the two is terminated or killed: the launcher ends, and the same command resumes, byte for byte."""
    process = launch_two(tmp_path / "run", "--dropout", 0)
    started(process, tmp_path / "run")
    os.kill(children(process)[-1], signum)
    shown, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and not (tmp_path / "run" / "run.json").exists(), shown[-2000:]
    with refused("was written by 2 processes, and this run has 1"):
        finetune(tmp_path / "run", *OPTIONS, "--per_device_train_batch_size", 32, "--use_cpu", "true", "--dropout", 0)
    shown, _ = (process := launch_two(tmp_path / "run", "--dropout", 0)).communicate(timeout=300)
    assert process.returncode == 0 and "resumes from" in shown, shown[-3000:]
    models = [weights(folder) for folder in (two, tmp_path / "run")]
    assert models[0] == models[1]


@pytest.mark.slow
def test_a_warning_sent_to_all_processes_costs_nothing(launch_two, tmp_path):
    """SLURM sends it to the launcher too, which must ignore it, as in recipes/guides/scale.md, or it dies."""
    process = launch_two(tmp_path / "run", "--num_train_epochs", 80, "--save_total_limit", 200,
                     before=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN))  # fmt: skip
    stage = started(process, tmp_path / "run")
    for pid in (process.pid, *children(process)):
        os.kill(pid, signal.SIGUSR1)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown[-3000:]
    steps = {int(path.name.rpartition("-")[2]) for path in stage.glob("checkpoint-*")}
    between = [step for step in steps if step % 5]
    assert 1 <= len(between) <= 2 and len(steps) == 80 + len(between)  # it may arrive one step apart


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_launcher_that_is_terminated(launch_two, tmp_path, signum):
    """It passes the signal on: the processes save, and the first says how to resume."""
    process = launch_two(tmp_path / "run", "--num_train_epochs", 80)
    stage = started(process, tmp_path / "run")
    process.send_signal(signum)
    shown, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and shown.count("\nended by SIG") == 1, shown[-3000:]
    assert [path for path in stage.glob("checkpoint-*") if int(path.name.rpartition("-")[2]) % 5], shown[-3000:]


def started(process, run):
    """The stage's folder, once its first checkpoint has been written."""
    stage, deadline = run / "stages" / "0-all", time.monotonic() + 200
    while not list(stage.glob("checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    return stage


def children(process):
    """The ids of the processes that a launcher has started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.9])
def test_a_disk_that_is_full_for_both_processes(launch_two, two, tmp_path, share):
    """Neither waits forever for the other, and with room the same command resumes to the same model."""
    needed = sum(path.stat().st_size for path in two.rglob("*") if path.is_file())
    with Disk(tmp_path / "disk", int(share * needed) // PAGE * PAGE, can_mount()) as disk:
        options = ["--dropout", 0, "--cache_dir", tmp_path / "cache"]
        shown, _ = (process := launch_two(disk.folder / "run", *options, before=disk.limit)).communicate(timeout=200)
        assert process.returncode != 0 and not (disk.folder / "run" / "run.json").exists(), shown[-2000:]
        assert shown.count("\nerror: output_dir: ") == 1 and "make room there" in shown, shown[-3000:]
        disk.grow()
        shown, _ = (process := launch_two(disk.folder / "run", *options, before=disk.limit)).communicate(timeout=300)
        assert process.returncode == 0, shown[-3000:]
        models = [weights(folder) for folder in (two, disk.folder / "run")]
        assert models[0] == models[1]
