"""Two machines, and sharded models: the same results as from two processes on one machine."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support import LEARNS, REPO, assert_reloads, interrupt, weights

from ftkit.evaluation.report import read_record
from ftkit.hub.parity import check_parity

pytestmark = pytest.mark.slow
OPTIONS = ["--max_train_samples", "150", "--num_train_epochs", "3", "--optim", "sgd", "--learning_rate", "0.05",
           "--save_total_limit", "9", "--model", "convnet", "--stages",
           '[{"train": "head"}, {"train": {"last": 1}}, {"train": "all"}]', "--dropout"]  # fmt: skip


LORA = ["--max_train_samples", "60", "--num_train_epochs", "3", "--save_total_limit", "9", "--method", "lora"]


def command(tmp_path, config, options=(), script=REPO / "recipes" / "finetune.py", of=OPTIONS, **changes):
    """The launcher's command line, with a configuration of the repository adapted to the CPU."""
    written = yaml.safe_load((REPO / "accelerate_configs" / f"{config}.yaml").read_text())
    written |= {"num_processes": 2, "mixed_precision": "no", "use_cpu": True} | changes
    written.pop("gpu_ids", None)
    path = tmp_path / f"{config}.yaml"
    path.write_text(yaml.safe_dump(written))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        path,
        *options,
        script,
        *LEARNS,
        *of,
    ]
    return [*map(str, launch)]


def run(words, **variables):
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, env=os.environ | variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def assert_same_weights(first, second):
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory):
    """A run of two processes on one machine."""
    folder = tmp_path_factory.mktemp("two")
    run([*command(folder, "multi_gpu"), "0", "--use_cpu", "true", "--output_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def machines():
    """Prefixes that start a command on each of two machines, and the first one's address: two connected network
    namespaces, or this machine twice."""
    names = [f"ftkit-{os.getpid()}-{number}" for number in range(2)]
    steps = [f"ip netns add {name}" for name in names]
    steps += [f"ip link add ftkit0 netns {names[0]} type veth peer name ftkit0 netns {names[1]}"]
    for number, name in enumerate(names, start=1):
        steps += [f"ip -n {name} addr add 10.77.0.{number}/24 dev ftkit0", f"ip -n {name} link set ftkit0 up",
                  f"ip -n {name} link set lo up"]  # fmt: skip
    joined = shutil.which("ip") and all(
        subprocess.run(step.split(), capture_output=True).returncode == 0 for step in steps
    )
    yield (
        ([["ip", "netns", "exec", name] for name in names] if joined else [[], []]),
        (("10.77.0.1", {"GLOO_SOCKET_IFNAME": "ftkit0"}) if joined else ("127.0.0.1", {})),
    )
    for name in names if shutil.which("ip") else ():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines(tmp_path, one_machine, machines):
    """Each has its own cache, and decodes the images once."""
    prefixes, (address, variables) = machines
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank, prefix in enumerate(prefixes):
        options = ["--machine_rank", rank, "--main_process_ip", address, "--main_process_port", port]
        words = command(tmp_path, "multi_node", options, num_machines=2)
        words += ["0", "--use_cpu", "true", "--cache_dir", str(tmp_path / f"cache-{rank}")]
        words += ["--output_dir", str(tmp_path / "run")]
        started.append(subprocess.Popen([*prefix, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        env=os.environ | variables))  # fmt: skip
    shown = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-2000:] for text in shown)
    assert_same_weights(one_machine, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    assert "accuracy" in shown[0] and "accuracy" not in shown[1]  # only the first process reports
    first, second = (sorted(p.name for p in (tmp_path / f"cache-{rank}").iterdir() if p.is_dir()) for rank in (0, 1))
    assert first == second and first


def sharded(tmp_path, config, folder, *options, of=OPTIONS, **changes):
    words = command(tmp_path, config, script=REPO / "tests" / "sharded.py", of=of, use_cpu=False, **changes)
    run([*words, *options, "--use_cpu", "false", "--output_dir", str(folder)], ACCELERATE_TORCH_DEVICE="cpu",
        DS_ACCELERATOR="cpu")  # fmt: skip
    return folder


def test_fsdp(tmp_path, one_machine):
    assert_same_weights(one_machine, sharded(tmp_path, "fsdp", tmp_path / "run", "0"))


# sgd has no state, which torch refuses to load. `accelerate config` writes files that ask for weights in parts, and
# for loading them in the first process alone.
@pytest.mark.parametrize(("optim", "kind"), [("adamw_torch", "FULL_STATE_DICT"), ("sgd", "SHARDED_STATE_DICT")])
def test_fsdp_resumes(tmp_path, convnet, optim, kind):
    """From trained weights with a new head."""
    options = ["0.2", "--optim", optim, "--model", str(convnet)]
    launch = yaml.safe_load((REPO / "accelerate_configs" / "fsdp.yaml").read_text())
    asked = {"fsdp_state_dict_type": kind, "fsdp_cpu_ram_efficient_loading": kind != "FULL_STATE_DICT"}
    changes = {"fsdp_config": launch["fsdp_config"] | asked}
    whole = sharded(tmp_path, "fsdp", tmp_path / "run", *options, **changes)
    expected = weights(whole)
    interrupt(whole, keep=2)
    again = sharded(tmp_path, "fsdp", tmp_path / "run", *options, **changes)
    assert weights(again) == expected
    assert_reloads(again)


def test_adapters_resume_under_deepspeed(tmp_path, mlp):
    """Even with a file that leaves the weights in parts."""
    pytest.importorskip("deepspeed", exc_type=ImportError)
    changes = {"deepspeed_config": {"zero_stage": 3, "zero3_save_16bit_model": False, "zero3_init_flag": True}}

    def train():
        return sharded(tmp_path, "deepspeed_zero3", tmp_path / "run", "--model", str(mlp), of=LORA, **changes)

    expected = weights(train(), "adapter_model")
    interrupt(tmp_path / "run", keep=2)
    assert weights(train(), "adapter_model") == expected
    assert_reloads(tmp_path / "run")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(tmp_path, one_machine, stage):
    pytest.importorskip("deepspeed", exc_type=ImportError)
    assert_same_weights(one_machine, sharded(tmp_path, f"deepspeed_zero{stage}", tmp_path / "run", "0"))


def logged_losses(run):
    """The logged losses of the last stage, with their mean."""
    log = json.loads((run / "stages" / "2-all" / "trainer_state.json").read_text())["log_history"]
    return [line[name] for line in log for name in ("loss", "train_loss") if name in line]


@pytest.mark.parametrize("config", ["multi_gpu", "fsdp", "deepspeed_zero2", "deepspeed_zero3"])
def test_bf16_of_the_launcher(tmp_path, config):
    """It trains, resumes exactly, and the saved model passes the gate in float32."""
    if config.startswith("deepspeed"):
        pytest.importorskip("deepspeed", exc_type=ImportError)

    def train():
        folder = tmp_path / "run"
        if config != "multi_gpu":
            return sharded(tmp_path, config, folder, "0", mixed_precision="bf16")
        words = command(tmp_path, config, mixed_precision="bf16")
        run([*words, "0", "--use_cpu", "true", "--output_dir", str(folder)])
        return folder

    folder = train()
    record, saved = read_record(folder), load_file(folder / "model" / "model.safetensors")
    losses = logged_losses(folder)
    assert record["precision"] == "bf16" and record["processes"] == 2
    assert {value.dtype for name, value in saved.items() if "batches" not in name} == {np.dtype("float32")}
    assert check_parity(folder / "model", folder / "evaluation", record) < 1e-4
    interrupt(folder, keep=2)
    train()
    again = load_file(folder / "model" / "model.safetensors")
    for name, value in saved.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert logged_losses(folder) == losses


@pytest.mark.parametrize("key", ["fsdp", "deepspeed"])
def test_sharding_by_a_key_of_the_recipe(tmp_path, one_machine, key):
    """The launcher only starts the processes."""
    if key == "deepspeed":
        pytest.importorskip("deepspeed", exc_type=ImportError)
    sizes = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    pieces = {"zero_optimization": {"stage": 2}} | dict.fromkeys(sizes, "auto")
    value = "true" if key == "fsdp" else json.dumps(pieces)
    assert_same_weights(one_machine, sharded(tmp_path, "multi_gpu", tmp_path / "run", "0", f"--{key}", value))
