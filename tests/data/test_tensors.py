"""Decode once: the pixels that inference will see, from a cache that is complete or missing."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage
from support import REPO
from torch.utils.data import DataLoader
from transformers import (
    BeitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    MobileNetV2ImageProcessor,
    MobileViTImageProcessor,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

import ftkit.data.feeding.tensors
import ftkit.data.pixels.decoding
from ftkit.config import DataArguments
from ftkit.data.feeding.engine import load_images
from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import collate, image_tensors
from ftkit.data.pixels.cache import cached, default_cache_dir
from ftkit.data.pixels.normalize import channel_statistics, histogram, normalizer

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
AS_IT_IS = ViTImageProcessor(size={"height": 4, "width": 6})


def timm_processor(height, width, **options):
    data = {"input_size": [3, height, width], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    return TimmWrapperImageProcessor(data | IMAGENET | options, architecture="test_vit")


@pytest.fixture
def split_of(tmp_path):
    """A split of image files, 0.png, 1.png, …, with alternating labels and `index` from 100. None is a broken file."""

    def write(images: list) -> Dataset:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{i}.png" for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            if image is None:
                path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
            else:
                image.save(path)
        features = Features(image=Image(), label=ClassLabel(names=["a", "b", "c"]), index=Value("int64"))
        columns = {"image": list(map(str, paths)), "label": [i % 3 for i in range(len(images))]}
        return Dataset.from_dict(columns | {"index": range(100, 100 + len(images))}, features=features)

    return write


@pytest.fixture
def grays(split_of, picture):
    """A split of ten grey images of 4 x 6 pixels with the values 0 to 9."""
    return split_of([picture(i) for i in range(10)])


@pytest.fixture
def tensors(tmp_path):
    """`image_tensors` with a temporary cache folder."""

    def make(split, processor=AS_IT_IS, channels=1):
        return image_tensors(split, processor, channels, str(tmp_path / "cache"))

    return make


@pytest.fixture
def checked(tmp_path):
    """The images of a split, whose broken images are an error or skipped."""

    def make(split, **options):
        args = DataArguments(dataset="digits", data_engine="tensor", cache_dir=str(tmp_path / "cache"), **options)
        return load_images(DatasetDict(test=split), AS_IT_IS, 1, args, seed=0)["test"]

    return make


@pytest.fixture
def no_decoding(monkeypatch):
    """Once called, decoding an image fails the test."""

    def fail(*arguments):
        raise AssertionError("an image was decoded again")

    return lambda: monkeypatch.setattr(ftkit.data.pixels.decoding, "to_mode", fail)


def test_a_split_as_tensors(grays, tensors):
    data = tensors(grays)
    assert (data.images.dtype, tuple(data.images.shape)) == (torch.uint8, (10, 1, 4, 6))
    assert data.images[:, 0, 0, 0].tolist() == list(range(10))
    assert (data.labels.tolist(), data.index.tolist()) == ([i % 3 for i in range(10)], list(range(100, 110)))
    assert (len(data), data.task.names, data.skipped) == (10, ["a", "b", "c"], [])
    assert data[3]["pixel_values"].shape == (1, 4, 6)
    assert data[3]["labels"] == 0


# --- the same pixels as in inference


SMALL = {"height": 24, "width": 32}
SAME = {"height": 40, "width": 30}
PROCESSORS = {
    "no resize": ViTImageProcessor(do_resize=False),
    "the same size": ViTImageProcessor(size=SAME),
    "smaller": ViTImageProcessor(size=SMALL),
    "larger, bicubic": ViTImageProcessor(size={"height": 50, "width": 64}, resample=3),
    "as ftkit makes it": ViTImageProcessor(
        size=SMALL, do_convert_rgb=True, image_mean=[0.13] * 3, image_std=[0.3] * 3
    ),
    "no normalisation": ViTImageProcessor(size=SMALL, do_normalize=False),
    "no rescaling": ViTImageProcessor(
        size=SMALL, do_rescale=False, image_mean=[120, 110, 100], image_std=[50, 60, 70]
    ),
    "another scale": ViTImageProcessor(size=SMALL, rescale_factor=1 / 127.5),
    "timm": timm_processor(24, 24),
    "timm, cropped": timm_processor(24, 24, crop_pct=0.8),
    "timm, squashed": timm_processor(24, 32, crop_mode="squash", interpolation="bilinear"),
    "timm, the same size": timm_processor(40, 30),
    "beit": BeitImageProcessor(size=SMALL, do_center_crop=True, crop_size={"height": 20, "width": 20}),
    "clip": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 24}),
    "deit": DeiTImageProcessor(size={"height": 28, "width": 28}, crop_size={"height": 24, "width": 24}),
    "efficientnet": EfficientNetImageProcessor(size=SMALL),
    "efficientnet, offset": EfficientNetImageProcessor(size=SMALL, rescale_factor=1 / 127.5, rescale_offset=True),
    "levit": LevitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}),
    "mobilenet": MobileNetV2ImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}),
    "mobilevit": MobileViTImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_saved_processor(split_of, tensors, name, channels):
    processor = PROCESSORS[name]
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), np.uint8)
    images = [PILImage.fromarray(image).convert("RGB" if channels == 3 else "L") for image in noise]
    if name not in ("no resize", "the same size", "timm, the same size"):
        images[1], images[3] = images[1].resize((33, 41)), images[3].rotate(90, expand=True)
    shown = [image.convert("RGB") for image in images]  # `pipeline` feeds RGB
    expected = [processor(image, return_tensors="pt")["pixel_values"][0] for image in shown]
    got = normalizer(processor, 3)(tensors(split_of(images), processor, channels).images)
    got = got.expand(-1, 3, -1, -1)
    assert (got - torch.stack(expected)).abs().max() < 3e-6


def test_a_single_channel_is_normalised_by_its_own_statistics(grays, tensors):
    processor = ViTImageProcessor(
        size={"height": 4, "width": 6}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    got = normalizer(processor, 1)(tensors(grays, processor).images)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[:, 0, 0, 0], (torch.arange(10) / 255 - 0.1) / 0.5)


# --- the cache


def test_nothing_is_decoded_twice(grays, tensors, no_decoding):
    first = tensors(grays)
    no_decoding()
    assert torch.equal(tensors(grays).images, first.images)
    # The cached pixels do not include the normalisation.
    other = ViTImageProcessor(size={"height": 4, "width": 6}, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    assert torch.equal(tensors(grays, other).images, first.images)
    with pytest.raises(AssertionError, match="decoded again"):
        tensors(grays, channels=3)
    with pytest.raises(AssertionError, match="decoded again"):
        tensors(grays, ViTImageProcessor(size={"height": 8, "width": 8}))
    with pytest.raises(AssertionError, match="decoded again"):
        tensors(grays.select(range(5)))


@pytest.mark.parametrize("package", ["PIL", "numpy", "torch", "torchvision", "transformers", "timm"])
@pytest.mark.parametrize("engine", [image_tensors, StreamedImages])
def test_the_cache_of_another_version_is_not_used(grays, tmp_path, no_decoding, monkeypatch, package, engine):
    images = engine(grays, AS_IT_IS, 1, str(tmp_path / "cache"))
    no_decoding()
    assert np.array_equal(engine(grays, AS_IT_IS, 1, str(tmp_path / "cache")).hashes, images.hashes)
    monkeypatch.setattr(sys.modules[package], "__version__", "0.0.other")
    with pytest.raises(AssertionError, match="decoded again"):
        engine(grays, AS_IT_IS, 1, str(tmp_path / "cache"))


def test_a_folder_that_is_read_again_is_not_decoded_again(picture_folder, load, tensors, no_decoding, values_of):
    root = picture_folder({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"})
    first = tensors(load(root)["train"])
    no_decoding()
    again = tensors(load(root)["train"])
    assert torch.equal(again.images, first.images)
    assert again.images[:, 0, 0, 0].tolist() == values_of(load(root)["train"])


def test_a_changed_file_is_decoded_again(picture_folder, load, tensors, picture):
    root = picture_folder({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"})
    tensors(load(root)["train"])
    picture(200).save(root / "train" / "b" / "2.png")
    assert tensors(load(root)["train"]).images[6].unique().tolist() == [200]


def keeping_times(path, change):
    """Change a file but keep its times, as some copies and archives do."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def in_table(values):
    """Images of a single value each, inside a table."""
    files = []
    for value in values:
        PILImage.fromarray(np.full((4, 6), value, np.uint8)).save(file := BytesIO(), "BMP")
        files.append({"bytes": file.getvalue(), "path": None})
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]))
    return Dataset.from_dict({"image": files, "label": [i % 2 for i in range(len(files))]}, features=features)


def test_a_changed_file_of_the_same_size_and_time_is_decoded_again(picture_folder, load, tensors, picture):
    root = picture_folder({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"})
    picture(100).save(path := root / "train" / "b" / "2.bmp")
    tensors(load(root)["train"])
    keeping_times(path, picture(200).save)
    assert 200 in tensors(load(root)["train"]).images


def test_a_changed_parquet_file_of_the_same_time_is_read_again(load, tensors, tmp_path):
    path = tmp_path / "data" / "train.parquet"
    path.parent.mkdir()
    in_table(range(40)).to_parquet(path)
    assert tensors(load(path.parent)["train"]).images.max() < 40
    keeping_times(path, in_table(range(100, 140)).to_parquet)
    assert tensors(load(path.parent)["train"]).images.min() >= 100


def test_different_tables_with_the_same_fingerprint_are_decoded_again(load, tensors, tmp_path):
    """A fingerprint from `Dataset.from_generator` does not cover the files that its generator reads."""
    for value in (0, 100):
        dataset = in_table([value] * 40)
        dataset._fingerprint = "the-same"
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        dataset.save_to_disk(tmp_path / "data")
        assert tensors(load(tmp_path / "data")["train"]).images.min() == value


def test_changed_images_that_a_parquet_file_names_are_decoded_again(load, tensors, tmp_path, picture):
    (tmp_path / "data").mkdir()
    files = [tmp_path / "data" / f"{number}.bmp" for number in range(40)]
    for file in files:
        picture(1).save(file)
    columns = {"image": list(map(str, files)), "label": [number % 2 for number in range(40)]}
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]))
    named = Dataset.from_dict(columns, features=features)
    pq.write_table(named.data.table, tmp_path / "data" / "train.parquet")
    assert tensors(load(tmp_path / "data")["train"]).images.max() == 1
    for file in files:
        keeping_times(file, picture(200).save)
    assert tensors(load(tmp_path / "data")["train"]).images.min() == 200


def test_labels_are_never_taken_from_the_cache(grays, tensors):
    tensors(grays)
    relabelled = grays.remove_columns("label").add_column("label", [2] * 10, feature=grays.features["label"])
    assert tensors(relabelled).labels.tolist() == [2] * 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_build_leaves_nothing(tmp_path, grays, tensors, monkeypatch, error):
    calls, whole = [], ftkit.data.pixels.decoding.PixelGeometry

    def interrupted(processor):
        def fail(images):
            calls.append(len(list((tmp_path / "cache").iterdir())))
            raise error("midway")

        return fail

    monkeypatch.setattr(ftkit.data.pixels.decoding, "PixelGeometry", interrupted)
    with pytest.raises(Exception if error is not KeyboardInterrupt else KeyboardInterrupt):
        tensors(grays)
    assert calls == [2]  # the build had started, under a lock
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(ftkit.data.pixels.decoding, "PixelGeometry", whole)
    assert tensors(grays).images[:, 0, 0, 0].tolist() == list(range(10))


@pytest.mark.parametrize("damage", ["cut", "no images", "no facts", "torn facts"])
def test_a_damaged_cache_is_rebuilt(tmp_path, grays, tensors, damage):
    tensors(grays)
    (folder,) = (tmp_path / "cache").iterdir()
    name = "images" if damage in ("cut", "no images") else "about.json"
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage in ("cut", "torn facts"):
        (folder / name).write_bytes(data[:-1])
    assert tensors(grays).images[:, 0, 0, 0].tolist() == list(range(10))


@pytest.mark.slow
def test_two_processes_can_build_the_same_cache_at_once(tmp_path):
    script = """if True:
        import sys
        from datasets import disable_progress_bars
        from transformers import ViTImageProcessor
        from ftkit.config import DataArguments
        from ftkit.data.sources.load import load_data
        from ftkit.data.feeding.tensors import image_tensors
        rows = load_data(DataArguments(dataset="digits"))["train"]
        sys.stdin.read(1)  # until the other process is here too
        images = image_tensors(rows, ViTImageProcessor(size={"height": 24, "width": 24}), 3, cache_dir=sys.argv[1])
        print(images.shape, int(images.images.sum()))
    """
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=REPO, **pipes) for _ in range(2)]
    for process in both:
        process.stdin.write("x")
        process.stdin.flush()
    results = [process.communicate(timeout=100)[0] for process in both]
    assert results[0] == results[1] != ""
    assert [path.name[0] != "." for path in (tmp_path / "cache").iterdir()] == [True]


def test_a_cache_being_built_is_waited_for(tmp_path, caplog):
    """However long it takes; a collective would give up after `ddp_timeout`."""
    begun, go_on, made, found = threading.Event(), threading.Event(), [], []

    def write(folder):
        made.append(folder)
        begun.set()
        assert go_on.wait(60)
        (folder / "file").write_text("whole")

    def ask():
        found.append((cached("key", write, str(tmp_path)) / "file").read_text())

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    with caplog.at_level(logging.INFO, "ftkit"):
        first.start()
        assert begun.wait(60)
        second.start()
        while not any("waiting for another process" in message for message in caplog.messages):
            second.join(0.01)
            assert second.is_alive()
        go_on.set()
        first.join(60)
        second.join(60)
    assert found == ["whole", "whole"] and len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_is_one_message_and_leaves_no_files(tmp_path, grays, tensors, monkeypatch, refused):
    def full(array):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ftkit.data.feeding.tensors.np.ascontiguousarray", full)
    with refused(
        "cache_dir", tmp_path / "cache", "No space left on device", "make room there", "or give another cache_dir"
    ):
        tensors(grays)
    assert list((tmp_path / "cache").iterdir()) == []


def test_building_a_cache_draws_no_random_numbers(grays, tensors):
    before = torch.get_rng_state()
    tensors(grays)
    assert torch.equal(torch.get_rng_state(), before)


def test_changes_to_the_tensor_do_not_reach_the_cache(grays, tensors):
    first = tensors(grays)
    first.images[:] = 255
    assert tensors(grays).images[:, 0, 0, 0].tolist() == list(range(10))


def test_a_cache_folder_that_cannot_be_written(tmp_path, grays, tensors, refused):
    (tmp_path / "cache").write_bytes(b"a file")
    with refused("cache_dir", tmp_path / "cache"):
        tensors(grays)


def test_without_a_cache_dir_the_cache_is_in_the_hugging_face_home(grays, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "home"))
    image_tensors(grays, AS_IT_IS, 1)
    assert default_cache_dir() == tmp_path / "home" / "ftkit"
    assert len(list(default_cache_dir().iterdir())) == 1
    shutil.rmtree(default_cache_dir())


# --- images that do not decode


def broken_split(split_of, picture, bad=(2, 5)):
    return split_of([None if i in bad else picture(i) for i in range(8)])


def test_bad_images_are_named(split_of, picture, checked, refused):
    with refused("2 of 8", "images/2.png", "images/5.png", "--on_bad_image skip"):
        checked(broken_split(split_of, picture))


def test_bad_images_can_be_skipped(split_of, picture, checked):
    for _ in range(2):  # built, and from the cache
        data = checked(broken_split(split_of, picture), on_bad_image="skip")
        assert data.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4, 6, 7]
        assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert data.index.tolist() == [100, 101, 103, 104, 106, 107]
        assert [(bad["index"], bad["file"].rsplit("/", 1)[1]) for bad in data.skipped] == [
            (102, "2.png"),
            (105, "5.png"),
        ]
        assert all(bad["reason"] for bad in data.skipped)


def test_a_repaired_image_is_used(picture_folder, load, checked, picture, refused):
    root = picture_folder({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"})
    (root / "train" / "a" / "1.png").write_bytes(b"broken")
    with refused("a/1.png"):
        checked(load(root)["train"])
    picture(77).save(root / "train" / "a" / "1.png")
    assert checked(load(root)["train"]).images[1].unique().tolist() == [77]


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_only_bad_images(split_of, picture, checked, refused, on_bad_image):
    with refused("8", "0.png"):
        checked(broken_split(split_of, picture, bad=range(8)), on_bad_image=on_bad_image)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped", "a folder"])
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_every_kind_of_damage_is_a_bad_image(tmp_path, checked, split_of, picture, damage, ending):
    split = split_of([picture(i) for i in range(3)])
    path = tmp_path / f"damaged.{ending}"
    PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(bytes(255 - byte for byte in data))
    else:
        path.unlink()
        if damage != "missing":
            path.mkdir() if damage == "a folder" else path.touch()
    files = Dataset.from_dict({"image": [str(path)], "label": [0], "index": [3]}, features=split.features)
    data = checked(concatenate_datasets([split, files]), on_bad_image="skip")
    assert [bad["file"] for bad in data.skipped] == [str(path)]
    assert data.index.tolist() == [100, 101, 102]


# --- batches


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_a_data_loader(grays, tensors, workers):
    loader = DataLoader(tensors(grays), batch_size=4, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(4, 1, 4, 6), (4, 1, 4, 6), (2, 1, 4, 6)]
    assert {batch["pixel_values"].dtype for batch in batches} == {torch.uint8}
    assert torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [i % 3 for i in range(10)]


def test_shuffled_batches_keep_images_and_labels_together(grays, tensors):
    torch.manual_seed(0)
    (batch,) = DataLoader(tensors(grays), batch_size=10, shuffle=True, collate_fn=collate)
    values = batch["pixel_values"][:, 0, 0, 0].tolist()
    assert sorted(values) == list(range(10)) != values
    assert batch["labels"].tolist() == [value % 3 for value in values]


# --- statistics


def test_channel_statistics_are_exact():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5), np.uint8))
    images[:, 1] = 51
    images[:, 2] = torch.where(images[:, 2] > 127, 255, 0)
    mean, std = channel_statistics(histogram(images))
    exact = (images.double() / 255).transpose(0, 1).flatten(1)
    assert mean == [round(float(value), 4) for value in exact.mean(1)]
    assert std == [max(round(float(value), 4), 1e-4) for value in exact.std(1, correction=0)]
    assert mean[1] == 0.2
    assert std[1] > 0  # no division by zero
