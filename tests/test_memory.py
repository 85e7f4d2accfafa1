"""Memory: what is free, what a run needs of it, and one sentence where that is too little."""

import errno
import logging
import re

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from support import MLP, TINY, train
from torch import nn
from transformers import ViTImageProcessor

from ftkit import memory
from ftkit.data.pixels.decoding import Decoder
from ftkit.errors import UserError, short_of_memory, user_errors
from ftkit.memory import available_memory, enough_memory
from ftkit.training.stages.memory import cost_of

CPU = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate {} bytes."
)
GPU = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB"
WORKER = "DataLoader worker (pid 7) is killed by signal: Killed. "


def numpys_error():
    try:
        np.empty((1 << 24, 1 << 24))
    except MemoryError as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (numpys_error(), "2.00 PiB could not be allocated"),
        (RuntimeError(CPU.format(14450688000)), "14.5 GB could not be allocated"),
        (torch.OutOfMemoryError(GPU), "20.00 MiB could not be allocated"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "not enough memory",
        ),
        (RuntimeError(WORKER), "ended a process that loads images"),
        (
            RuntimeError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback …"),
            "not enough memory",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_a_failed_allocation_is_one_sentence(error, said, capsys):
    assert said in short_of_memory(error)
    with (
        pytest.raises(UserError, match="^decoding: not enough memory.*: use less$"),
        enough_memory("decoding", "use less"),
    ):
        raise error
    with pytest.raises(SystemExit) as ended, user_errors():
        raise error
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed and "image_size" in printed and "Traceback" not in printed


def test_an_image_is_not_called_broken_because_memory_is_short(tmp_path, monkeypatch, refused):
    def short(image, channels):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("ftkit.data.pixels.decoding.to_mode", short)
    with refused("not enough memory"):
        train(tmp_path / "run", *MLP, *TINY, "--cache_dir", tmp_path / "cache", "--on_bad_image", "skip")
    assert not [*tmp_path.rglob("about.json")]


@pytest.mark.parametrize("error", [RuntimeError("shape '[3]' is invalid"), OSError(errno.ENOENT, "no such file")])
def test_other_errors_stay_what_they_are(error):
    assert short_of_memory(error) is None
    with pytest.raises(type(error)), enough_memory("decoding", "use less"):
        raise error


@pytest.mark.parametrize("where", ["_backward", "prediction_step"])
def test_an_allocation_that_fails_in_training_is_one_sentence(tmp_path, monkeypatch, refused, where):
    def short(*args, **kwargs):
        raise RuntimeError(CPU.format(9 * 10**9))

    monkeypatch.setattr(f"ftkit.training.loop.trainer.ImageTrainer.{where}", short)
    with refused("training", "9.0 GB could not be allocated", "auto_find_batch_size: true", "--overwrite true"):
        train(tmp_path / "run", *MLP, *TINY)


# --- what is free


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of this process, as files: `limit` and `used` of each folder."""

    def groups(version: int, **numbers: tuple[str, int, int]) -> None:
        names = [
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ("memory.max", "memory.current", "inactive_file"),
        ][version - 1]
        root = tmp_path / "memory" if version == 1 else tmp_path
        for folder, (limit, used, cached) in numbers.items():
            place = root / folder.replace("__", "/")
            place.mkdir(parents=True, exist_ok=True)
            (place / names[0]).write_text(f"{limit}\n")
            (place / names[1]).write_text(f"{used}\n")
            (place / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")

    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    return groups


@pytest.mark.parametrize(("version", "line"), [(1, "8:pids:/\n4:memory:/job/step\n"), (2, "0::/job/step\n")])
@pytest.mark.parametrize(("job", "step", "left"), [("max", "5000", 4300), ("3000", "5000", 2600), ("900", "max", 500)])
def test_limits_of_containers_count(groups, monkeypatch, version, line, job, step, left):
    unlimited = str(1 << 62)
    numbers = {"job": (job, 500, 100), "job__step": (step, 1000, 300)}
    groups(version, **{name: (limit.replace("max", unlimited) if version == 1 else limit, *rest)
                       for name, (limit, *rest) in numbers.items()})  # fmt: skip
    read = memory.Path.read_text
    monkeypatch.setattr(
        memory.Path, "read_text", lambda path: line if str(path) == "/proc/self/cgroup" else read(path)
    )
    assert available_memory() == left
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_memory() == left // 2


def test_what_the_machine_has_left_is_found():
    assert 1e8 < available_memory() < 1e15


def test_a_limit_of_the_address_space_counts(monkeypatch):
    pages = int(memory.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * memory.resource.getpagesize() + 10**8
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (limit, memory.resource.RLIM_INFINITY))
    assert 0 < available_memory() < 1.2e8


# --- what a run needs


def test_the_cost_of_layers_is_known():
    """Two linear layers keep their inputs; the second is frozen, and so only passes gradients on."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(64, 1000), nn.Linear(1000, 10)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, pixel_values):
            self.seen += 1
            return self.second(self.first(pixel_values.flatten(1)))

    net = Net().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost = cost_of(net, (1, 8, 8), {"first.weight", "first.bias"})
    assert cost.update == 3 * 4 * (64 * 1000 + 1000)
    assert cost.forward == 4 * (64 + 1000)
    assert cost.training == 4 * 64 + 2 * cost.forward
    assert cost_of(net, (1, 8, 8), set()) == (0, cost.forward, 0)
    assert not net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_model_that_looks_at_values_is_tried_with_two_images():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, pixel_values):
            hidden = self.norm(self.layer(pixel_values.flatten(1)))
            return hidden if hidden.sum().item() > -1e9 else None

    net = Net()
    cost = cost_of(net, (1, 2, 2), {name for name, _ in net.named_parameters()})
    assert cost.training >= 4 * (4 + 3) and net.norm.num_batches_tracked == 0


def test_what_a_model_keeps_of_a_forward_pass_stays_as_it_was():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.positions = nn.Linear(4, 3), torch.arange(4.0)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, pixel_values):
            self.positions = self.positions.to(pixel_values.device)
            self.seen += 1
            return self.layer(pixel_values.flatten(1) + self.positions)

    net = Net()
    cost_of(net, (1, 2, 2), {"layer.weight"})
    assert net.positions.device.type == "cpu" and net.seen == 0 and net.layer.bias.requires_grad


def test_parameters_that_layers_share_count_once():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    layers[2].weight = layers[1].weight
    assert cost_of(_wrapped(layers), (1, 2, 4), {"model.1.weight", "model.2.weight"}).update == 3 * 4 * 64


def test_attention_costs_no_square_of_its_length():
    cost, longer = (
        cost_of(
            _wrapped(timm.create_model("test_vit", img_size=side)), (3, side, side), {"model.patch_embed.proj.bias"}
        )
        for side in (256, 512)  # 256 and 1,024 patches
    )
    assert longer.training < 4.1 * cost.training


def _wrapped(model):
    """A model of timm that is called as one of transformers."""
    return _Wrapped(model)


class _Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values)


def test_estimating_changes_neither_the_model_nor_random_numbers():
    model = timm.create_model("test_vit", drop_rate=0.5)
    before = torch.get_rng_state()
    cost_of(_wrapped(model), (3, 160, 160), {"model.head.weight"})
    assert torch.equal(torch.get_rng_state(), before)
    assert model.head.weight.grad is None and model.head.weight.device.type == "cpu"


# --- photographs


def test_large_images_are_decoded_a_few_at_a_time_to_the_same_pixels(tmp_path):
    """Three images of 12 megapixels fill the memory that is used at once; one of them does not decode."""
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        path = tmp_path / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((4000, 3000), Image.NEAREST).save(path)
    (tmp_path / "b" / "broken.jpg").write_bytes(b"broken")
    files = [*map(str, sorted(tmp_path.glob("*/[0-9].jpg")))]
    rows = Dataset.from_dict(
        {"image": [*files[:2], str(tmp_path / "b" / "broken.jpg"), *files[2:]], "index": range(5)},
        features=Features(image=ImageFeature(), index=Value("int64")),
    )
    decoder = Decoder(rows, ViTImageProcessor(size={"height": 8, "width": 8}), 3)
    geometry, together = decoder.geometry, []
    decoder.geometry = lambda images: together.append(len(images)) or geometry(images)
    found = decoder(range(5))
    alone = [decoder([row]) for row in range(5)]
    assert together[:4] == [1, 1, 1, 1]
    assert (found.positions, [bad["row"] for bad in found.bad]) == ([0, 1, 3, 4], [2])
    assert np.array_equal(found.pixels, np.concatenate([one.pixels for one in alone if one.positions]))
    assert np.array_equal(found.hashes, np.concatenate([one.hashes for one in alone]))


def test_photographs_of_one_size_are_not_trained_on_whole(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    with caplog.at_level(logging.INFO, logger="ftkit"):
        job = train(tmp_path / "run", "--data_dir", tmp_path / "photos", "--max_steps", 1)
    assert job.images["train"].shape == (3, 64, 64)
    assert re.search("images of 300 x 400 pixels are large and are resized to 64 x 64.*image_size sets", caplog.text)


def test_images_that_cannot_fit_are_refused_before_one_is_made(tmp_path, refused):
    with refused("two images of 3 x 1000000 x 1000000 pixels", "set a smaller one, such as"):
        train(tmp_path / "run", "--dataset", "digits", "--model", "convnet", "--image_size", 1_000_000)
