"""Parquet and webdataset files, save_to_disk folders, the embedded digits, and an unreachable Hub."""

import errno
import io
import tarfile

import datasets.config
import huggingface_hub.constants
import numpy as np
import pyarrow.parquet
import pytest
from datasets import ClassLabel, DatasetDict, Value
from datasets.exceptions import DatasetGenerationError
from hub_server import HubServer
from PIL import Image as PILImage

from ftkit.data.sources import load as sources

ABC = ClassLabel(names=["c", "a", "b"])  # not in alphabetical order, and it stays so


@pytest.fixture
def parquet(tmp_path, labelled):
    """Write parquet files of 30 images each, under the given names."""

    def write(*names: str, root: str = "data"):
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            labelled([0, 1, 2] * 10, ABC).to_parquet(path)
        return tmp_path / root

    return write


@pytest.mark.parametrize(
    "names, root, sizes",
    [
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
            "x",
            (54, 6, 30),
        ),
        (["train.parquet", "val.parquet", "test.parquet"], "x", (30, 30, 30)),
        (["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"], "x", (54, 6, 30)),
        (["train.parquet", "valid.parquet", "test.parquet"], "train", (30, 30, 30)),
        (["train.parquet", "test.parquet"], "testing", (27, 3, 30)),
        (["flowers-train.parquet", "flowers_test.parquet"], "x", (27, 3, 30)),
        (["imagenet1k-train-0000.parquet", "imagenet1k-validation-00.parquet"], "x", (24, 30, 6)),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "x", (27, 3, 30)),
        (["train-00000-of-00001-0a1b2c3d4e5f6a7b.parquet", "TEST-00000-of-00001-99ab2c3d.parquet"], "x", (27, 3, 30)),
        (["train.parquet", "test.parquet", "extra.parquet"], "x", (27, 3, 30)),
    ],
)
def test_parquet_files_by_split(parquet, load, names, root, sizes):
    data = load(parquet(*names, root=root))
    assert tuple(len(data[split]) for split in ("train", "validation", "test")) == sizes
    assert {tuple(rows.features["label"].names) for rows in data.values()} == {("c", "a", "b")}


@pytest.mark.parametrize(
    "names, fix",
    [
        (["test-00000-of-00001.parquet"], {"train_split": "test", "test_split": "none"}),
        (["a.parquet", "b.parquet"], {"train_split": "a"}),
        (["train_a.parquet", "train_b.parquet"], {"train_split": "train_a"}),
        (
            [f"{config}/{split}-0.parquet" for config in ("de", "en") for split in ("train", "test")],
            {"train_split": "de/train", "test_split": "de/test"},
        ),
    ],
)
def test_parquet_files_whose_splits_are_not_clear(parquet, load, refused, names, fix):
    root = parquet(*names)
    with refused(root, *fix.values()) as refusal:
        load(root)
    assert refusal.value.fix == fix
    assert len(load(root, **fix)["train"]) in (21, 27)


def test_a_file_of_a_split_that_is_not_used_may_have_other_columns(parquet, load, refused):
    root = parquet("train.parquet", "test.parquet")
    table = pyarrow.parquet.read_table(root / "test.parquet").drop_columns("label")
    pyarrow.parquet.write_table(table, root / "test.parquet")
    with refused("test", "--test_split none") as refusal:
        load(root)
    assert [len(rows) for rows in load(root, **refusal.value.fix).values()] == [21, 3, 6]


def test_a_single_parquet_file(parquet, load, labels_of, values_of):
    root = parquet("animals.parquet")
    for source in (root, root / "animals.parquet"):
        data = load(source, validation_size=0.2)
        assert [len(rows) for rows in data.values()] == [19, 5, 6]
        assert labels_of(data["train"]) == ["cab"[value % 3] for value in values_of(data["train"])]


def test_a_changed_parquet_file_is_read_again(parquet, load, labelled, values_of):
    root = parquet("train.parquet", "val.parquet", "test.parquet")
    assert len(load(root)["test"]) == 30
    labelled([0, 1, 2], ABC).to_parquet(root / "test.parquet")
    assert values_of(load(root)["test"]) == [0, 1, 2]


def test_a_broken_parquet_file_is_named(parquet, load, refused):
    root = parquet("train.parquet", "test.parquet")
    (root / "test.parquet").write_bytes((root / "train.parquet").read_bytes()[:-50])
    with refused(root / "test.parquet"):
        load(root)


def test_save_to_disk_folders(tmp_path, labelled, saved, load, values_of, labels_of):
    train, test = labelled([0, 1, 2] * 10, ABC), labelled([2, 1], ABC)
    data = load(saved(train=train, test=test))
    assert (labels_of(data["test"]), values_of(data["test"])) == (["b", "a"], [0, 1])
    assert len(data["train"]) == 27
    train.save_to_disk(tmp_path / "single")
    single = load(tmp_path / "single", validation_size=0.2)
    assert [len(rows) for rows in single.values()] == [19, 5, 6]
    assert labels_of(single["test"]) == ["cab"[value % 3] for value in values_of(single["test"])]


@pytest.mark.parametrize("feature", [Value("int64"), ClassLabel(names=["0", "1"])])
@pytest.mark.parametrize("format", [{"type": "torch"}, {"type": "numpy", "columns": ["label"]}])
def test_a_saved_output_format_is_ignored(labelled, saved, load, labels_of, feature, format):
    splits = {
        "train": labelled([0, 1] * 10, feature),
        "val": labelled([0], feature),
        "test": labelled([1, 0], feature),
    }
    data = load(saved(**DatasetDict(splits).with_format(**format)))
    assert [data["test"].features["label"].names[int(i)] for i in data["test"]["label"]] == ["1", "0"]


@pytest.mark.parametrize("pattern", ["train/*.arrow", "train/state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_an_incomplete_save_to_disk_folder(labelled, saved, load, refused, pattern, content):
    root = saved(train=labelled([0, 1] * 20))
    path = next(root.glob(pattern))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with refused(root):
        load(root)


def test_the_embedded_digits(load, labels_of):
    from sklearn.datasets import load_digits

    data, digits = load(dataset="digits"), load_digits()
    assert [len(rows) for rows in data.values()] == [1293, 144, 360]
    rows = data["test"]["index"][:]
    assert labels_of(data["test"]) == [str(label) for label in digits.target[rows]]
    shown = np.stack([np.asarray(image) for image in data["test"]["image"]])
    assert np.abs(shown / 255 - digits.images[rows] / 16).max() < 0.003


@pytest.mark.parametrize("name", ["image.png", "archive.rar"])
def test_a_file_of_another_kind(tmp_path, load, refused, name):
    (tmp_path / name).write_bytes(b"x")
    with refused(tmp_path / name, "CSV"):
        load(tmp_path / name)


# --- the Hub


@pytest.fixture(params=["out of reach", "switched off"])
def no_hub(request, monkeypatch):
    """An address where nothing answers, or the libraries' offline mode."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", request.param == "switched off")


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_room_for_a_download_from_the_hub(load, refused, monkeypatch, wrapped):
    def fetch(*args, **options):
        full = OSError(errno.ENOSPC, "No space left on device", "/cache/file")
        if wrapped:
            raise DatasetGenerationError("An error occurred") from full
        raise full

    monkeypatch.setattr(sources, "load_dataset", fetch)
    with HubServer() as hub, refused("HF_HOME", "/cache/file", "No space left on device", "make room there"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        load(dataset="owner/name")


@pytest.mark.parametrize(
    "dataset, words",
    [
        ("mnist", ["ylecun/mnist", "four IDX files"]),
        ("fashion_mnist", ["zalando-datasets/fashion_mnist", "four IDX files"]),
        ("cifar10", ["uoft-cs/cifar10", "data_batch_1", "parquet"]),
        ("cifar100", ["uoft-cs/cifar100", "parquet"]),
        ("owner/name", ["owner/name", "class folders"]),
    ],
)
def test_an_unreachable_hub_is_one_message(no_hub, load, refused, dataset, words):
    with refused("--data_dir", "Hub", *words):
        load(dataset=dataset)


@pytest.mark.parametrize("name, near", [("mnits", "'mnist'"), ("cifar-10", "'cifar10'"), ("digit", "'digits'")])
def test_a_misspelt_short_name_never_reaches_the_hub(load, refused, monkeypatch, name, near):
    def ask(*arguments, **options):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("ftkit.data.sources.load.from_hub", ask)
    with refused(repr(name), f"did you mean {near}"):
        load(dataset=name)


# --- webdataset


@pytest.fixture
def tars(tmp_path):
    """Write webdataset shards, `{"train-000000.tar": 9}`, of grey images 0, 1, 2, … in three classes by number."""

    def write(counts, root="tars"):
        (tmp_path / root).mkdir()
        for name, count in counts.items():
            with tarfile.open(tmp_path / root / name, "w") as archive:
                for i in range(count):
                    image = io.BytesIO()
                    PILImage.fromarray(np.full((4, 6), i, np.uint8)).save(image, "PNG")
                    for suffix, data in (("png", image.getvalue()), ("cls", str(i % 3).encode())):
                        member = tarfile.TarInfo(f"{name[:-4]}-{i:04d}.{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        return tmp_path / root

    return write


def test_webdataset_shards_by_split(tars, load, labels_of, values_of):
    root = tars({"train-000000.tar": 20, "train-000001.tar": 10, "test-000000.tar": 9})
    data = load(root)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 27, "validation": 3, "test": 9}
    assert labels_of(data["test"]) == [str(value % 3) for value in values_of(data["test"])]
    single = load(root / "train-000000.tar", validation_size=0.2)
    assert sum(map(len, single.values())) == 20


def test_an_archive_next_to_class_folders_is_ignored(picture_folder, tars, load):
    root = picture_folder({"a": 20, "b": 20})
    (tars({"photos.tar": 9}) / "photos.tar").rename(root / "photos.tar")
    assert load(root)["train"].features["label"].names == ["a", "b"]


def test_a_broken_webdataset_file_is_named(tars, load, refused):
    root = tars({"train-000000.tar": 20, "test-000000.tar": 9})
    (root / "test-000000.tar").write_bytes(b"no archive" * 100)
    with refused(root / "test-000000.tar", "webdataset"):
        load(root)
