"""Which folders are splits, which are classes, and what is counted as not used."""

import json
import os
import sys
import tarfile
import zipfile
from types import ModuleType

import pandas as pd
import pytest

from ftkit.config import DataArguments
from ftkit.data.sources import suffixes
from ftkit.data.sources.ledger import Ledger, describe
from ftkit.data.sources.load import load_data


def read(root, **options) -> tuple[dict[str, int], list[str], list[str]]:
    """The sizes of the splits, the classes, and the lines about what is not used."""
    ledger = Ledger()
    data = load_data(DataArguments(data_dir=str(root), **options), ledger)
    sizes = {split: len(rows) for split, rows in data.items()}
    return sizes, data["train"].features["label"].names, list(map(describe, ledger.not_used))


def both(*splits: str, classes=("cat", "dog"), count=10) -> dict[str, int]:
    return {f"{split}/{name}": count for split in splits for name in classes}


CARVED = {"train": 18, "validation": 2, "test": 20}


@pytest.mark.parametrize(
    "counts",
    [
        both("seg_train/seg_train", "seg_test/seg_test"),
        both("dataset/training_set/training_set", "dataset/test_set/test_set"),
        both("training set", "test"),
        both("photos/Train", "photos/TEST") | {"photos": 2},
        both("test_data/train", "test_data/test"),
        both("train/images", "test/images"),
        both("archive/chest_xray/train", "archive/chest_xray/test"),
        both("train2017", "test2017"),
        {f"{name}/{split}": 10 for name in ("cat", "dog") for split in ("train", "test")},
    ],
)
def test_folders_of_splits(picture_folder, counts):
    assert read(picture_folder(counts))[:2] == (CARVED, ["cat", "dog"])


@pytest.mark.parametrize(
    "names",
    [
        ["apple", "bus", "tractor", "train"],
        ["contest", "developer", "latest", "trainspotting", "value"],
        ["invalid", "valid"],
        ["n02085620-Chihuahua", "n02099601-train_dog"],
    ],
)
@pytest.mark.parametrize("below", ["", "Images/"])
def test_folders_of_images_are_classes(picture_folder, names, below):
    assert read(picture_folder({f"{below}{name}": 10 for name in names}))[1] == names


def test_a_class_called_train_in_splits(picture_folder):
    sizes, names, _ = read(picture_folder(both("train", "test", classes=("bus", "train"))))
    assert (sizes, names) == (CARVED, ["bus", "train"])


@pytest.mark.parametrize(
    "counts, fix, sizes",
    [
        (both("train", "test") | {"docs": 3}, {"train_split": "train", "test_split": "test"}, CARVED),
        ({"train": 10, "test": 10, "docs": 10}, {"train_split": "."}, {"train": 21, "validation": 3, "test": 6}),
        (
            both("train_station", "airport", classes=("day", "night")),
            {"train_split": "."},
            {"train": 28, "validation": 4, "test": 8},
        ),
        ({"train": 10, "no_train": 10}, {"train_split": "."}, {"train": 14, "validation": 2, "test": 4}),
        (
            both("images_background", "images_evaluation"),
            {"train_split": "."},
            {"train": 28, "validation": 4, "test": 8},
        ),
        (both("train", "evaluation"), {"test_split": "evaluation"}, CARVED),
        (both("train", "val", "valid", "test"), {"validation_split": "val"}, dict.fromkeys(CARVED, 20)),
        (
            both("test"),
            {"train_split": "test", "test_split": "none"},
            {"train": 14, "validation": 2, "test": 4},
        ),
        (
            both("train") | {"val": 3, "test": 5},
            {"validation_split": "none", "test_split": "none"},
            {"train": 14, "validation": 2, "test": 4},
        ),
        (both("train") | {"test/cat": 5, "test/eel": 5}, {"classes": ["cat", "dog"]}, CARVED | {"test": 5}),
    ],
)
def test_what_is_not_clear_names_the_settings_that_help(picture_folder, refused, counts, fix, sizes):
    root = picture_folder(counts)
    with refused(root, *map(str, fix.get("classes", fix.values()))) as refusal:
        read(root)
    assert refusal.value.fix == fix
    assert read(root, **fix)[0] == sizes


@pytest.mark.parametrize("file", ["test.zip", "test_set.tar.gz", "test/cat/1.HEIC", "test/a.npy"])
def test_a_split_that_cannot_be_read_is_not_carved_instead(picture_folder, refused, file):
    for name in ("of splits", "of classes")[: 2 if "." in file.partition("/")[0] else 1]:
        root = picture_folder(both("train" if name == "of splits" else "."), name)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
        with refused(root / file.partition("/")[0], "looks like test") as refusal:
            read(root)
        assert refusal.value.fix == {"test_split": "none"}
        assert read(root, **refusal.value.fix)[0] == {"train": 14, "validation": 2, "test": 4}


@pytest.mark.parametrize("file", ["test.zip", "lists/test_list.mat"])
def test_an_archive_beside_the_folder_of_class_folders(picture_folder, refused, file):
    root = picture_folder(both("Images") | {"lists": 0})
    (root / file).write_bytes(b"x")
    with refused(root / file, "looks like test") as refusal:
        read(root)
    assert refusal.value.fix == {"test_split": "none"}


def test_archives_beside_the_splits_that_they_hold(picture_folder):
    root = picture_folder(both("train", "test"))
    for name in ("train.zip", "test.zip"):
        (root / name).write_bytes(b"x")
    assert read(root)[0] == CARVED


def test_data_sets_beside_each_other(picture_folder, refused):
    counts = both("one/train", "one/test", "two/train", "two/test")
    root = picture_folder(counts)
    with refused("one holds splits of its own") as refusal:
        read(root)
    assert refusal.value.fix == {"data_dir": str(root / "one")}


def test_a_further_split_is_named_and_counted(picture_folder, caplog):
    caplog.set_level("INFO")
    _, _, unused = read(picture_folder(both("train", "test", "extra")))
    assert unused == ["extra: 20 files (.png): in a split that is not used"]
    assert "extra" in caplog.text


def test_none_carves_though_there_is_a_split(picture_folder):
    sizes, _, unused = read(picture_folder(both("train", "val", "test")), test_split="none", validation_split="none")
    assert sizes == {"train": 14, "validation": 2, "test": 4}
    assert [line.partition(":")[0] for line in unused] == ["test", "val"]


def write_lists(root, suffix: str, **lists: list[int]) -> None:
    for name, numbers in lists.items():
        text = "".join(f"{kind}/{number}{suffix}\n" for kind in ("cat", "dog") for number in numbers)
        (root / f"{name}.txt").write_text(text)


def test_lists_of_images_are_splits(picture_folder):
    root = picture_folder(both("images", count=12) | {"meta": 0})
    write_lists(root / "meta", "", train=[*range(8)], test=[8, 9])
    (root / "meta" / "train_notes.txt").write_text("no list\n")
    sizes, names, unused = read(root, validation_size=0.25)
    assert (sizes, names) == ({"train": 12, "validation": 4, "test": 4}, ["cat", "dog"])
    assert unused == [
        "images/cat: 2 files (.png): images in no list of a split that is used",
        "images/dog: 2 files (.png): images in no list of a split that is used",
        "meta: 1 file (.txt): not an image format that ftkit reads",
    ]


def test_images_in_no_list_are_train_if_none_lists_it(picture_folder):
    root = picture_folder(both("."))
    write_lists(root, ".png", testing_list=[0, 1], validation_list=[2])
    assert read(root)[0] == {"train": 14, "validation": 2, "test": 4}
    assert read(root, train_split=".")[0] == {"train": 14, "validation": 2, "test": 4}


def test_a_list_of_missing_images(picture_folder, refused):
    root = picture_folder(both("."))
    write_lists(root, ".png", test=[0, 1, 77])
    with refused(root / "test.txt", "cat/77.png") as refusal:
        read(root)
    assert read(root, **refusal.value.fix)[0] == {"train": 14, "validation": 2, "test": 4}


def test_a_folder_that_holds_the_classes_once_more(picture_folder, refused):
    root = picture_folder(both(".", "all"))
    with refused(root / "all", "cat, dog", "--classes cat dog") as refusal:
        read(root)
    assert read(root, **refusal.value.fix)[1] == ["cat", "dog"]


def test_classes_that_hold_the_same_folders_are_warned_of(picture_folder, caplog):
    assert read(picture_folder(both("color", "gray")))[1] == ["color", "gray"]
    assert "color, gray are read as classes, but hold the same folders (cat, dog)" in caplog.text


# --- what is not used


def test_every_file_is_used_or_counted(picture_folder):
    root = picture_folder({"ant": 10, "bee": 10, ".": 3, "labels": 0, ".git": 1})
    for name in ("bee/1.HEIC", "bee/2.HEIC", "bee/3.cr2", "ant/Thumbs.db", "photos.zip", "README", "labels/a.txt"):
        (root / name).write_bytes(b"x")
    sizes, names, unused = read(root)
    assert (sum(sizes.values()), names) == (20, ["ant", "bee"])
    assert sorted(unused) == [
        ".: 1 file (.zip): archives are not unpacked",
        ".: 1 file (without a suffix): not an image format that ftkit reads",
        ".: 2 files: hidden or system files",
        ".: 3 files (.png): images outside of class folders",
        "bee: 1 file (.cr2): not an image format that ftkit reads",
        "bee: 2 files (.HEIC): Pillow needs a plugin to read them: pip install pillow-heif",
        "labels: 1 file (.txt): not an image format that ftkit reads",
    ]


def test_many_folders_are_one_line_of_the_log(picture_folder, caplog):
    caplog.set_level("INFO")
    root = picture_folder({"ant": 10, "bee": 10} | {f"ant/{i}": 0 for i in range(15)})
    for i in range(15):
        (root / f"ant/{i}/about.json").write_text("{}")
    assert len(read(root)[2]) == 15
    assert [line for line in caplog.messages if "not used" in line] == [
        "  not used     15 places, such as ant/0: 15 files (.json): not an image format that ftkit reads"
    ]


@pytest.mark.parametrize("file, word", [("a.HEIC", "pip install pillow-heif"), ("a.nef", "1 .nef"), (None, "fly")])
def test_a_class_folder_without_an_image_is_an_error(picture_folder, refused, file, word):
    root = picture_folder({"ant": 10, "bee": 10, "fly": 0})
    if file:
        (root / "fly" / file).write_bytes(b"x")
    with refused(root / "fly", word, "--classes ant bee") as refusal:
        read(root)
    assert read(root, **refusal.value.fix)[1] == ["ant", "bee"]


def test_links_to_folders_are_followed_and_loops_named(picture_folder):
    root = picture_folder({"data/ant": 10, "data/bee": 10, "store/more": 5})
    for link, to in (("ant/more", "store/more"), ("cow", "store/more"), ("bee/again", "data")):
        os.symlink(root / to, root / "data" / link)
    sizes, names, unused = read(root / "data")
    assert (sum(sizes.values()), names) == (30, ["ant", "bee", "cow"])
    assert unused == ["bee/again: 1 link: leads back to a folder above it"]


def test_linked_splits(picture_folder):
    root = picture_folder(both("a", "b") | {"data": 0})
    for link, to in (("train", "a"), ("test", "b")):
        os.symlink(root / to, root / "data" / link)
    assert read(root / "data")[0] == CARVED


def test_heic_is_read_where_its_package_is_installed(picture_folder, monkeypatch, picture):
    from PIL import Image

    package = ModuleType("pillow_heif")
    package.__version__, package.register_heif_opener = "1", lambda: Image.register_extension("PNG", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    for cached in (suffixes.image_suffixes, suffixes.register_plugins):
        cached.cache_clear()
    root = picture_folder({"ant": 10, "bee": 10})
    picture(1).save(root / "bee" / "more.HEIC", "PNG")
    try:
        assert sum(read(root)[0].values()) == 21
    finally:
        for cached in (suffixes.image_suffixes, suffixes.register_plugins):
            cached.cache_clear()


def test_images_that_do_not_decode_are_in_the_same_account(picture_folder, tmp_path):
    from transformers import ViTImageProcessor

    from ftkit.data.feeding.tensors import image_tensors

    root, ledger = picture_folder({"ant": 10, "bee": 10}), Ledger()
    (root / "ant" / "bad.png").write_bytes(b"")
    data = load_data(DataArguments(data_dir=str(root), test_split="none"), ledger)
    processor = ViTImageProcessor(size={"height": 4, "width": 6})
    images = {split: image_tensors(rows, processor, 1, str(tmp_path / "cache")) for split, rows in data.items()}
    assert [row["n"] for row in ledger.record(images) if row["reason"] == "not decoded"] == [1]


def test_broken_and_odd_parquet_files_beside_class_folders_are_not_used(picture_folder):
    root = picture_folder({"cat": 10, "dog": 10})
    (root / "torn.parquet").write_bytes(b"torn")
    paths = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)]
    pd.DataFrame({"path": paths, "embedding": [[0.1, 0.2]] * 20}).to_parquet(root / "embeddings.parquet")
    (root / "numbers.json").write_text(json.dumps([{"image": {"path": path}, "label": {"a": 1}} for path in paths]))
    sizes, classes, lines = read(root)
    assert sum(sizes.values()) == 20 and classes == ["cat", "dog"]
    assert sorted(line.partition(":")[0] for line in lines) == ["embeddings.parquet", "numbers.json", "torn.parquet"]


def test_shards_that_are_missing_are_named(tmp_path, labelled, caplog):
    for number in (0, 1):
        labelled([0, 1] * 10).to_parquet(tmp_path / f"train-0000{number}-of-00005.parquet")
    read(tmp_path)
    assert "only 2 of the 5 shards of train are here" in caplog.text


def test_links_inside_of_a_tar_are_read(picture_folder, tmp_path):
    root = picture_folder({"cat": 10, "dog": 10})
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.add(path, path.relative_to(root))
        link = tarfile.TarInfo("dog/again.png")
        link.type, link.linkname = tarfile.LNKTYPE, "cat/0.png"
        archive.addfile(link)
    assert sum(read(tmp_path / "pictures.tar")[0].values()) == 21


def test_archives_of_images_alone_are_classes(picture_folder, tmp_path):
    root = picture_folder({"cat": 10, "dog": 10})
    (tmp_path / "tars").mkdir()
    for name in ("cat", "dog"):
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as archive:
            for path in sorted((root / name).iterdir()):
                archive.add(path, path.name)
    sizes, names, _ = read(tmp_path / "tars")
    assert (sum(sizes.values()), names) == (20, ["cat", "dog"])


def test_names_with_blanks_are_quoted_in_advice(picture_folder, refused):
    root = picture_folder({"Golden Pear": 10, "apple": 10, "empty": 0})
    (root / "empty" / "notes.raw").write_text("x")
    with refused("--classes apple 'Golden Pear'"):
        read(root)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_not_utf_8(picture_folder, refused):
    root = picture_folder({"a": 10, "b": 10})
    os.rename(root / "a" / "0.png", os.fsencode(root / "a") + b"/caf\xe9.png")
    with refused(root / "a", "not UTF-8", "rename it"):
        read(root)


# --- archives


def pack(folder, archive):
    """Write a folder's content to a zip file, as `zip -r` does."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize(
    "counts",
    [
        both("seg_train/seg_train", "seg_test/seg_test"),
        {f"{name}/{split}": 10 for name in ("cat", "dog") for split in ("train", "test")},
        both("data/train", "data/test") | {"docs": 0},
    ],
)
def test_an_archive_is_read_as_its_folder(picture_folder, tmp_path, counts):
    folder = picture_folder(counts)
    assert read(pack(folder, tmp_path / "pets.zip"))[:2] == read(folder)[:2]


def test_lists_inside_of_an_archive(picture_folder, tmp_path):
    folder = picture_folder(both("."))
    write_lists(folder, ".png", test=[0, 1], val=[2])
    assert read(pack(folder, tmp_path / "pets.zip"))[0] == {"train": 14, "validation": 2, "test": 4}


def test_a_table_beside_archives_of_its_images(picture_folder, tmp_path):
    (tmp_path / "data").mkdir()
    pack(picture_folder({"x": 20}), tmp_path / "data" / "images.zip")
    rows = "".join(f"{i},{'cat' if i % 2 else 'dog'}\n" for i in range(20))
    (tmp_path / "data" / "labels.csv").write_text("id,breed\n" + rows)
    sizes, names, unused = read(tmp_path / "data")
    assert (sum(sizes.values()), names, unused) == (20, ["cat", "dog"], [])


def test_an_archive_in_an_archive(picture_folder, tmp_path):
    (tmp_path / "outer").mkdir()
    pack(picture_folder(both("train")), tmp_path / "outer" / "train.zip")
    assert read(pack(tmp_path / "outer", tmp_path / "all.zip"))[1] == ["cat", "dog"]


def test_names_in_utf_8_without_its_flag(picture_folder, tmp_path):
    archive = pack(picture_folder({"Kxxfer": 10, "b": 10}), tmp_path / "pets.zip")
    archive.write_bytes(archive.read_bytes().replace(b"Kxxfer", "Käfer".encode()))
    assert read(archive)[1] == ["b", "Käfer"]


def test_classes_of_an_archive_without_images_are_an_error(picture_folder, tmp_path, refused):
    folder = picture_folder(both(".") | {"eel": 0})
    (folder / "eel" / "1.cr2").write_bytes(b"x")
    with refused(tmp_path / "pets.zip", "eel", "1 .cr2") as refusal:
        read(pack(folder, tmp_path / "pets.zip"))
    assert read(tmp_path / "pets.zip", **refusal.value.fix)[1] == ["cat", "dog"]


@pytest.mark.parametrize("name, link", [("../../out.png", None), ("cat/0.png", "/etc/hostname"), ("a.png", "../../x")])
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path, refused, name, link):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.addfile(member)
    with refused(tmp_path / "pets.tar", "cannot be read as an archive", name):
        read(tmp_path / "pets.tar")


# --- lists of splits


LISTED = {"test": ["a/0.png", "b/1.png"], "train": [f"{name}/{i}.png" for name in "ab" for i in range(2, 10)]}
PAIRS = {split: [[path, "ab".index(path[0]), path[0]] for path in paths] for split, paths in LISTED.items()}
LINES = "\n".join(LISTED["test"])


@pytest.mark.parametrize(
    "file, text",
    [
        ("test.csv", "path\n" + LINES),
        ("splits/test.json", json.dumps(LISTED["test"])),
        ("lists/testset.lst", LINES),
        ("split.json", json.dumps(LISTED)),
        ("split_me.json", json.dumps(PAIRS)),
        ("test.txt", "data/a/0.png 0\ndata/b/1.png 1\n"),
        ("parts.csv", "path,split\n" + "".join(f"{path},{split}\n" for split in LISTED for path in LISTED[split])),
    ],
)
def test_lists_of_splits_in_their_forms(picture_folder, file, text):
    root = picture_folder({"a": 10, "b": 10})
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(text)
    data = load_data(DataArguments(data_dir=str(root)))
    assert (data["test"]["source"][:], len(data["train"])) == (LISTED["test"], 14 if "train" in text else 16)


def test_a_list_that_contradicts_the_folders_of_splits(picture_folder, refused):
    root = picture_folder(both("train", "test"))
    (root / "val.txt").write_text("train/cat/0.png\ntrain/dog/0.png\n")
    with refused("val.txt", "lies in the folder of train", "--train_split train") as refusal:
        read(root)
    assert read(root, **refusal.value.fix)[0] == {"train": 18, "validation": 2, "test": 20}


def test_a_file_of_splits_that_cannot_be_read(picture_folder, refused):
    """CUB-200: splits go by the numbers of images in another file."""
    root = picture_folder(both("images"))
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    with refused("train_test_split.txt", "--test_split none") as refusal:
        read(root)
    assert sum(read(root, **refusal.value.fix)[0].values()) == 20


def test_several_lists_of_each_split(picture_folder, refused):
    root = picture_folder(both("images") | {"labels": 0})
    for number in (1, 2):
        write_lists(root / "labels", ".png", **{f"train{number}": [*range(6)], f"test{number}": [6 + number, 9]})
    with refused("labels/train1", "labels/test2") as refusal:
        read(root)
    assert read(root, **refusal.value.fix)[0] == {"train": 10, "validation": 2, "test": 4}
