"""Tensor or stream: chosen by size, with the same pixels."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import DatasetDict, Image
from PIL import Image as PILImage
from transformers import ViTImageProcessor

from ftkit.config import DataArguments
from ftkit.data.feeding.engine import load_images, set_up_loading
from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import Batch, ImageTensors, image_tensors

SIDE = ViTImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture
def photo_splits(tmp_path, load):
    """Twelve colour images of several sizes in two classes, a third of them JPEG files."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(12):
            path = tmp_path / "photos" / split / "ab"[number % 2] / f"{number}.{'jpg' if number % 3 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (9 + number % 4, 11 + number % 3, 3)
            PILImage.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    return load(tmp_path / "photos")


@pytest.fixture
def by(tmp_path):
    """`load_images` with more `DataArguments`."""

    def by(splits: DatasetDict, channels=3, processor=SIDE, seed=0, **options):
        args = DataArguments(dataset="digits", cache_dir=str(tmp_path / "cache"), **options)
        assert not args.check()
        return load_images(splits, processor, channels, args, seed)

    return by


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({}, ImageTensors, "tensor: 0.0 MB decoded is within tensor_cache_gb, 8"),
        ({"tensor_cache_gb": 1e-6}, StreamedImages, "stream: 0.0 MB decoded is more than tensor_cache_gb, 1e-06"),
        ({"tensor_cache_gb": 1e-6, "data_engine": "tensor"}, ImageTensors, "tensor: as configured"),
        ({"data_engine": "stream"}, StreamedImages, "stream: as configured"),
        ({"image_transform": {"hflip": 0.5}}, StreamedImages, "stream: image_transform changes single images"),
    ],
)
def test_the_engine_is_chosen_by_size_and_the_reason_is_logged(photo_splits, by, caplog, options, kind, reason):
    with caplog.at_level(logging.INFO, logger="ftkit"):
        images = by(photo_splits, **options)
    assert [type(split) for split in images.values()] == [kind] * 3
    assert reason in caplog.text


def test_a_full_disk_means_a_stream_unless_the_tensor_is_cached(
    photo_splits, by, caplog, monkeypatch, refused, tmp_path
):
    monkeypatch.setattr("ftkit.data.feeding.engine.free_bytes", lambda folder: 100)
    monkeypatch.setattr("ftkit.data.pixels.cache.free_bytes", lambda folder: 100)
    with caplog.at_level(logging.INFO, logger="ftkit"):
        assert isinstance(by(photo_splits)["train"], StreamedImages)
    assert f"stream: 0.0 MB decoded is more than the 0.00 GB that are free in cache_dir, {tmp_path}" in caplog.text
    with refused("cache_dir", "0.0 MB are free", "--data_engine stream", "cache_dir") as refusal:
        by(photo_splits, data_engine="tensor")
    assert refusal.value.fix == {"data_engine": "stream"}
    monkeypatch.undo()
    by(photo_splits)
    monkeypatch.setattr("ftkit.data.feeding.engine.free_bytes", lambda folder: 100)
    assert isinstance(by(photo_splits)["train"], ImageTensors)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_engines_give_the_same_batches(photo_splits, by, channels):
    rows = torch.tensor([5, 0, 11, 3])
    tensor, stream = (by(photo_splits, channels, data_engine=engine)["train"] for engine in ("tensor", "stream"))
    assert tensor.shape == stream.shape == (channels, 8, 8)
    assert len(tensor) == len(stream) == 12
    for batch in (Batch(rows, 3), rows.tolist()):
        for name, values in tensor.__getitems__(batch).items():
            assert np.array_equal(values, stream.__getitems__(batch)[name]), name
    assert torch.equal(tensor[7]["pixel_values"], stream[7]["pixel_values"])
    assert np.array_equal(tensor.histogram(), stream.histogram())
    assert torch.equal(tensor.sample(5), stream.sample(5))


def test_a_stream_keeps_its_own_copy_of_the_processor(photo_splits, tmp_path):
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    cache = {"cache_dir": str(tmp_path / "cache")}
    for _ in range(2):  # built, and from the cache
        stream = StreamedImages(photo_splits["train"], processor, 3, **cache)
        processor.image_mean, processor.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
        assert torch.equal(stream.sample(12), image_tensors(photo_splits["train"], SIDE, 3, **cache).images)


def test_a_stream_finds_bad_images_before_training(photo_splits, by, refused):
    rows = photo_splits["train"]
    path = rows.cast_column("image", rows.features["image"].__class__(decode=False))[4]["image"]["path"]
    with open(path, "wb") as file:
        file.write(b"broken")
    with refused("1 of 12", path, "--on_bad_image skip"):
        by(photo_splits, data_engine="stream")
    tensor, stream = (
        by(photo_splits, data_engine=engine, on_bad_image="skip")["train"] for engine in ("tensor", "stream")
    )
    assert stream.index.tolist() == tensor.index.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert torch.equal(stream.sample(11), tensor.images)
    assert stream.skipped == tensor.skipped


@pytest.mark.parametrize(
    "broken, on_bad_image, fix",
    [
        ({"train": [0]}, "error", {"on_bad_image": "skip"}),
        ({"train": [0], "test": [1]}, "error", {"on_bad_image": "skip"}),
        ({"test": range(12)}, "error", {"on_bad_image": "skip", "test_split": "none"}),
        ({"test": range(12)}, "skip", {"test_split": "none"}),
        ({"train": range(6)}, "error", {}),  # of two classes, one is left
        ({"train": range(12), "test": [3]}, "skip", {}),
    ],
)
def test_what_is_recommended_for_broken_images_works(photo_splits, by, refused, broken, on_bad_image, fix):
    for split, rows in broken.items():
        files = photo_splits[split].cast_column("image", Image(decode=False))["image"]
        for row in rows:
            Path(files[row]["path"]).write_bytes(b"broken")
    said = [
        f"{split}: {len(rows)} of 12" if len(rows) < 12 else f"{split}: none of its" for split, rows in broken.items()
    ]
    with refused(*said, *(f"--{key} {value}" for key, value in fix.items())) as refusal:
        by(photo_splits, on_bad_image=on_bad_image)
    assert refusal.value.fix == fix


def test_a_carved_split_is_not_carved_again(photo_splits, by, refused):
    rows = photo_splits["train"]
    for file in rows.cast_column("image", Image(decode=False))["image"][:2]:
        Path(file["path"]).write_bytes(b"broken")
    carved = DatasetDict(train=rows.select(range(2, 12)), test=rows.select([0, 1]))
    with refused("test: none of its 2 images decodes", "replace or remove them") as refusal:
        by(carved, on_bad_image="skip")
    assert not refusal.value.fix


def test_a_timm_transform_depends_only_on_seed_epoch_and_image(photo_splits, by, monkeypatch):
    options = {"auto_augment": "rand-m9-mstd0.5", "scale": [0.5, 1.0]}
    images = by(photo_splits, image_transform=options)["train"]
    plain = by(photo_splits)["train"]
    rows = torch.arange(12)
    whole = images.pixels(rows, epoch=1)
    assert (whole.shape, whole.dtype) == (plain.images.shape, torch.uint8)
    torch.manual_seed(5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's generator has been seeded"))
        assert torch.equal(images.pixels(rows[[7, 2]], epoch=1), whole[[7, 2]])
    assert not torch.equal(images.pixels(rows, epoch=2), whole)
    assert not torch.equal(by(photo_splits, image_transform=options, seed=1)["train"].pixels(rows, epoch=1), whole)
    validation = by(photo_splits, image_transform=options)["validation"]
    assert torch.equal(validation.sample(12), by(photo_splits)["validation"].images)


def test_a_transform_that_timm_rejects_is_one_message(photo_splits, by, refused):
    with refused("image_transform", "no_such_augmentation", "timm says"):
        by(photo_splits, image_transform={"auto_augment": "no_such_augmentation"})


@pytest.mark.parametrize(("asked", "workers"), [(None, 2), (3, 3), (0, 0)])
def test_a_stream_gets_a_worker_for_each_core(photo_splits, by, monkeypatch, asked, workers):
    monkeypatch.setattr("ftkit.data.feeding.engine.cores", lambda: 4)
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    set_up_loading(args, by(photo_splits, data_engine="stream"), asked)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (workers, workers > 0)


@pytest.mark.parametrize(("free", "workers", "moves"), [(2, None, True), (1.9, None, False), (2, 1, False)])
def test_tensors_move_to_a_device_with_room_for_them(photo_splits, by, monkeypatch, free, workers, moves):
    images = by(photo_splits)
    size = 3 * 12 * 3 * 8 * 8
    monkeypatch.setattr("torch.accelerator.get_memory_info", lambda device: (free * size, 10 * size))
    # "meta" plays the accelerator: it takes tensors, and shows which have moved.
    args = SimpleNamespace(world_size=1, device=torch.device("meta"), dataloader_pin_memory=True)
    set_up_loading(args, images, workers)
    batch = images["test"].__getitems__([3, 1])
    assert {batch[name].device.type for name in ("pixel_values", "labels")} == {"meta" if moves else "cpu"}
    assert args.dataloader_pin_memory is not moves
