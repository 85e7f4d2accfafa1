"""Image columns of parquet files from several writers, and archives of class folders."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

LABELS = ["cat", "dog", "eel"] * 10


def pixels(value: int) -> np.ndarray:
    return np.full((5, 6, 3), value, np.uint8)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(value)).save(file, "PNG")
    return file.getvalue()


FILES = [png(i) for i in range(30)]
STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
ROWS = pa.list_(pa.list_(pa.uint8()))
COLUMNS = {
    "bytes": pa.array(FILES),
    "large bytes": pa.array(FILES, pa.large_binary()),
    "views of bytes": pa.array(FILES, pa.binary_view()),
    "structs": pa.array([{"bytes": file, "path": None} for file in FILES]),
    "large structs": pa.array([{"bytes": file, "path": "x.png"} for file in FILES], STRUCT),
    "other structs": pa.array([{"name": "x", "data": file} for file in FILES]),
    "lists of bytes": pa.array([list(file) for file in FILES], pa.list_(pa.uint8())),
    "signed bytes": pa.array([np.frombuffer(file, np.int8).tolist() for file in FILES], pa.list_(pa.int8())),
    "rows of pixels": pa.array([pixels(i)[..., 0].tolist() for i in range(30)], ROWS),
    "colours": pa.array([pixels(i).tolist() for i in range(30)], pa.large_list(pa.large_list(pa.list_(pa.int64())))),
    "channels first": pa.array([pixels(i).transpose(2, 0, 1).tolist() for i in range(30)]),
    "lists of one": pa.array([[{"bytes": file, "path": None}] for file in FILES]),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_become_images(tmp_path, load, values_of, labels_of, kind, named):
    pq.write_table(pa.table({"picture": COLUMNS[kind], "label": LABELS}), tmp_path / "train.parquet")
    data = load(tmp_path, image_column="picture" if named else None)
    for rows in data.values():
        shown = [int(np.asarray(image).flat[0]) for image in rows["image"]]
        assert labels_of(rows) == [LABELS[value] for value in shown]
    assert sum(map(len, data.values())) == 30


def test_a_parquet_file_of_paths(tmp_path, load, refused):
    for i, file in enumerate(FILES):
        (tmp_path / f"{i}.png").write_bytes(file)
    paths = [f"{i}.png" for i in range(30)]
    pq.write_table(pa.table({"image": paths, "label": LABELS}), tmp_path / "train.parquet")
    for place in (tmp_path, tmp_path / "train.parquet"):
        assert sum(map(len, load(place).values())) == 30
    pq.write_table(pa.table({"image": FILES, "name": paths, "label": LABELS}), tmp_path / "train.parquet")
    assert sum(map(len, load(tmp_path / "train.parquet", image_column="name").values())) == 30
    with refused("image_column", "'label'", "'cat'"):
        load(tmp_path / "train.parquet", image_column="label")


@pytest.mark.parametrize(
    "labels, names",
    [
        (pa.array([i % 2 == 0 for i in range(30)]), ["False", "True"]),
        (pa.array([float(i % 3) for i in range(30)]), ["0", "1", "2"]),
        (pa.array(LABELS, pa.string_view()), ["cat", "dog", "eel"]),
        (pa.array(LABELS).dictionary_encode(), ["cat", "dog", "eel"]),
        (pa.array([label.encode() for label in LABELS]), ["cat", "dog", "eel"]),
    ],
)
def test_labels_of_any_type(tmp_path, load, labels, names):
    pq.write_table(pa.table({"image": FILES, "label": labels}), tmp_path / "all.parquet")
    assert load(tmp_path / "all.parquet")["train"].features["label"].names == names


@pytest.mark.parametrize(
    "labels, words",
    [
        (pa.array([i / 7 for i in range(30)]), ["fractions", "regression"]),
        (pa.array([[1, 0], [0, 1], [0, 1]] * 10), ["lists", "one class per image"]),
        (pa.array(range(30), pa.date32()), ["date32"]),
    ],
)
def test_labels_that_are_no_classes(tmp_path, load, refused, labels, words):
    pq.write_table(pa.table({"image": FILES, "label": labels, "breed": LABELS}), tmp_path / "all.parquet")
    with refused("label_column", "'label'", "breed", *words) as refusal:
        load(tmp_path / "all.parquet")
    assert refusal.value.fix == {"label_column": "breed"}


# --- archives


def tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def members(*folders: str, n=12) -> dict[str, bytes]:
    return {f"{folder}/{i}.png": FILES[i] for folder in folders for i in range(n)}


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.zip"])
@pytest.mark.parametrize("top", ["", "pets/", "./"])
def test_archives_of_class_folders(tmp_path, load, labels_of, name, top):
    files = members(*(f"{top}{split}/{label}" for split in ("train", "test") for label in ("cat", "dog")))
    files[f"{top}train/readme.txt"] = b"x"
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
    else:
        tar(tmp_path / name, files)
    for place in (tmp_path, tmp_path / name):
        data = load(place)
        assert (len(data["test"]), sorted(set(labels_of(data["test"])))) == (24, ["cat", "dog"])
        assert sum(map(len, data.values())) == 48


def test_an_archive_of_each_split(tmp_path, load):
    for split in ("train", "test"):
        tar(tmp_path / f"{split}.tar", members("cat", "dog"))
    assert len(load(tmp_path)["test"]) == 24


@pytest.mark.parametrize(
    "files, words",
    [
        (members("."), ["only one class", "'pets'"]),
        (members("train/cat", "train/dog", "docs"), ["docs", "train"]),
        ({"readme.txt": b"x"}, ["holds no images"]),
    ],
)
def test_archives_that_cannot_be_used(tmp_path, load, refused, files, words):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with refused(tmp_path / "pets.zip", *words):
        load(tmp_path / "pets.zip")


def test_damaged_archives(tmp_path, load, refused):
    (tmp_path / "pets.zip").write_bytes(b"no archive")
    with refused(tmp_path / "pets.zip", "cannot be read"):
        load(tmp_path / "pets.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in "ab":
            archive.writestr(f"{folder}/0.png", bytes(1 << 27))
    with refused("bomb.zip", "a/0.png", f"{1 << 27:,} bytes"):
        load(tmp_path / "bomb.zip")


@pytest.mark.parametrize("member", ["cls", "json", "txt"])
def test_labels_in_members_of_webdataset(tmp_path, load, member):
    about = [json.dumps({"label": label, "caption": f"a {label}"}) for label in LABELS]
    content = {"cls": [str(i % 3) for i in range(30)], "json": about, "txt": LABELS}[member]
    files = {
        f"{i:03}.{suffix}": data
        for i in range(30)
        for suffix, data in (("png", FILES[i]), (member, content[i].encode()))
    }
    tar(tmp_path / "all.tar", files)
    data = load(tmp_path, label_column="txt" if member == "txt" else None)
    expected = ["0", "1", "2"] if member == "cls" else ["cat", "dog", "eel"]
    assert data["train"].features["label"].names == expected
