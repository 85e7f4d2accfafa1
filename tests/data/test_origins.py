"""The source of each image: the name by which its owner finds it, without a folder of this machine."""

import io
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from ftkit.compat.datasets import fingerprint
from ftkit.data.feeding.tensors import image_tensors
from ftkit.data.sources import load as sources
from ftkit.data.sources import splits as splitting

NAMES = ClassLabel(names=["a", "b"])


def png(value: int) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(np.full((4, 6), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def shard(path, start: int, count: int, name="{}.png") -> None:
    """A parquet file of `count` images with the values `start`, …; each with a file name, unless it is None."""
    files = [{"bytes": png(start + i), "path": name and name.format(start + i)} for i in range(count)]
    features = Features(image=Image(), label=NAMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"image": files, "label": [i % 2 for i in range(count)]}, features=features).to_parquet(path)


def sources_by_value(data, values_of) -> dict[int, str]:
    """The source of each image by the grey value that identifies it, of all splits."""
    pairs = (zip(values_of(rows), rows["source"], strict=True) for rows in data.values())
    return dict(sorted(pair for split in pairs for pair in split))


def test_class_folders(picture_folder, load, values_of, monkeypatch):
    root = picture_folder({"train/cat": 12, "train/dog/tan": 12, "test/cat": 2, "test/dog": 2})
    expected = [
        *(f"train/cat/{i}.png" for i in range(12)), *(f"train/dog/tan/{i}.png" for i in range(12)),
        *(f"test/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)),
    ]  # fmt: skip
    monkeypatch.chdir(root.parent)
    for place in (root, root.name, f"./{root.name}/../{root.name}/"):  # whichever way the folder is named
        found = sources_by_value(load(place), values_of)  # a third of them carved out of train
        assert list(found.values()) == expected and list(found) == list(range(28))


def test_subsets_keep_the_names_of_their_images(picture_folder, load, values_of):
    root = picture_folder({"cat": 20, "dog": 20, "owl": 20})
    whole = sources_by_value(load(root), values_of)
    for options in ({"max_train_samples": 10}, {"samples_per_class": 5}, {"classes": ["owl", "cat"]}):
        part = load(root, **options)
        found = sources_by_value(part, values_of)
        assert found.items() <= whole.items() and len(found) < 60


def test_names_of_any_kind(tmp_path, load, values_of):
    names = ["ünï/犬 🐕.png", "שלום/ע.png", "<script>/a'b\".png", "a/b c\n.png", "a/=1+1.png", "a/back\\slash.png"]
    for i, name in enumerate(names * 6):
        path = tmp_path / "data" / str(i % 2) / f"part {i // 6}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    found = sources_by_value(load(tmp_path / "data"), values_of)
    assert found == {i: f"{i % 2}/part {i // 6}/{name}" for i, name in enumerate(names * 6)}


def test_lists_of_files(picture_folder, load, values_of, tmp_path):
    """Relative, absolute, and of files elsewhere, whose shared folder is not shown."""
    root = picture_folder({"cat": 10, "dog": 10})
    rows = [(path, path.parent.name) for path in sorted(root.rglob("*.png"), key=lambda p: (p.parent, int(p.stem)))]
    expected = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)]
    for place in (root / "list.csv", tmp_path / "elsewhere" / "list.csv"):
        place.parent.mkdir(exist_ok=True)
        pd.DataFrame(rows, columns=["image", "label"]).to_csv(place, index=False)
        assert list(sources_by_value(load(place), values_of).values()) == expected
        place.unlink()
    (root / "lists").mkdir()
    relative = [(f"../{path.relative_to(root)}", label) for path, label in rows]
    pd.DataFrame(relative, columns=["image", "label"]).to_csv(root / "lists" / "train.csv", index=False)
    found = sources_by_value(load(root / "lists" / "train.csv"), values_of)
    assert list(found.values()) == expected


@pytest.mark.parametrize("name", ["{}.png", "cat/{}.png", "/home/someone/{}.png", r"C:\Users\Someone\{}.png", None])
def test_rows_of_parquet_shards(tmp_path, load, values_of, name):
    shard(tmp_path / "x/data/train-0-of-2.parquet", 0, 20, name)
    shard(tmp_path / "x/data/train-1-of-2.parquet", 20, 20, name)
    shard(tmp_path / "x/data/test-0-of-1.parquet", 40, 20, name)
    own = (lambda value: f"/{value}.png") if name else (lambda value: "")
    expected = [
        f"data/{file}.parquet[{row}]{own(20 * number + row)}"
        for number, file in enumerate(["train-0-of-2", "train-1-of-2", "test-0-of-1"])
        for row in range(20)
    ]
    assert list(sources_by_value(load(tmp_path / "x"), values_of).values()) == expected


def test_rows_of_parquet_that_name_files(picture_folder, load, values_of):
    root = picture_folder({"images": 30})
    files = [{"bytes": None, "path": str(root / "images" / f"{i}.png")} for i in range(30)]
    features = Features(image=Image(), label=NAMES)
    rows = Dataset.from_dict({"image": files, "label": [i % 2 for i in range(30)]}, features=features)
    pq.write_table(rows.data.table, root / "train.parquet")
    found = sources_by_value(load(root), values_of)
    assert found == {i: f"images/{i}.png" for i in range(30)}


@pytest.mark.parametrize("folder", ["", "cat/tan/", "./cat/"])
def test_members_of_archives(tmp_path, load, values_of, folder):
    (tmp_path / "x").mkdir()
    for number, file in enumerate(["train-0.tar", "train-1.tar", "test-0.tar"]):
        with tarfile.open(tmp_path / "x" / file, "w") as archive:
            for i in range(20):
                for suffix, content in (("png", png(20 * number + i)), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{folder}{i:02}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    found = sources_by_value(load(tmp_path / "x", label_column="cls"), values_of)
    place = folder.removeprefix("./")
    assert list(found.values()) == [
        f"{file}/{place}{i:02}.png" for file in ("train-0.tar", "train-1.tar", "test-0.tar") for i in range(20)
    ]


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_members_of_archives_of_class_folders(tmp_path, load, values_of, suffix):
    (tmp_path / "x").mkdir()
    members = {f"pets/{name}/{i}.png": png(start + i) for start, name in ((0, "cat"), (20, "dog")) for i in range(20)}
    if suffix == "zip":
        with zipfile.ZipFile(tmp_path / "x" / "pets.zip", "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(tmp_path / "x" / "pets.tar.gz", "w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    for place in (tmp_path / "x", tmp_path / "x" / f"pets.{suffix}"):
        found = sources_by_value(load(place), values_of)
        assert list(found.values()) == [f"pets/{name}" for name in members]


def test_rows_that_a_column_divides_keep_their_numbers(tmp_path, load, values_of):
    features = Features(image=Image(), label=NAMES, split=Value("string"))
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(40)],
        "label": [i % 2 for i in range(40)],
        "split": [("train", "train", "test", "test")[i % 4] for i in range(40)],
    }
    dataset = Dataset.from_dict(rows, features=features)
    (tmp_path / "x").mkdir()
    dataset.to_parquet(tmp_path / "x" / "all.parquet")
    assert sources_by_value(load(tmp_path / "x"), values_of) == {i: f"all.parquet[{i}]" for i in range(40)}
    dataset.save_to_disk(tmp_path / "saved")
    assert sources_by_value(load(tmp_path / "saved"), values_of) == {i: f"data[{i}]" for i in range(40)}


def test_messages_name_the_columns_of_the_data_alone(tmp_path, load, refused):
    shard(tmp_path / "x" / "train.parquet", 0, 8)
    with refused("image, label") as refusal:
        load(tmp_path / "x", label_column="kind")
    assert "__" not in str(refusal.value)


def test_rows_of_arrays_and_of_the_hub(tmp_path, load, values_of, labelled, monkeypatch):
    digits = load(dataset="digits")
    assert {f"train[{index}]" for rows in digits.values() for index in rows["index"]} == {
        source for rows in digits.values() for source in rows["source"]
    }
    labelled([0, 1] * 15).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved")["test"]["source"][0].startswith("data[")
    hub = DatasetDict(train=labelled([0, 1] * 15), extra=labelled([0, 1] * 3))
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: hub)
    monkeypatch.setattr(sources, "from_hub", lambda load, what, fix: load())
    found = load(dataset="owner/name", test_split="extra")
    assert found["test"]["source"][:] == [f"extra[{i}]" for i in range(6)]  # as the data call it


def test_what_a_cache_goes_by_stays_the_same(picture_folder, load, monkeypatch):
    """Images decoded before there were sources need not be decoded again, and a run resumes."""
    root = picture_folder({"cat": 20, "dog": 20})
    named = load(root)
    monkeypatch.setattr(splitting, "with_sources", lambda splits, *_: splits)
    plain = load(root)
    assert [fingerprint(rows) for rows in named.values()] == [fingerprint(rows) for rows in plain.values()]
    assert "source" not in plain["train"].column_names


def test_images_that_are_skipped_are_named_and_the_others_keep_their_names(picture_folder, load, tmp_path):
    from transformers import ViTImageProcessor

    root = picture_folder({"cat": 30, "dog": 30})
    (root / "cat" / "3.png").write_bytes(b"torn")
    processor, named = ViTImageProcessor(size={"height": 4, "width": 6}), {}
    for rows in load(root).values():
        images = image_tensors(rows, processor, 1, str(tmp_path / "cache"))
        assert [bad["source"] for bad in images.skipped] in ([], ["cat/3.png"])
        named |= dict(zip(images.about()["source"], images.images[:, 0, 0, 0].tolist(), strict=True))
    expected = {f"{name}/{i}.png": i + start for name, start in (("cat", 0), ("dog", 30)) for i in range(30)}
    del expected["cat/3.png"]
    assert named == expected
