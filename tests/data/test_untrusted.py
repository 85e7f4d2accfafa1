"""Untrusted data neither open nor write a file outside of their folder."""

import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from transformers import ViTImageProcessor

from ftkit.data.feeding.tensors import image_tensors
from ftkit.data.sources import load as sources

NAMES = ["a", "b"]


def png(value: int) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(np.full((4, 6), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows_with(file: dict | None, at: int = 7) -> Dataset:
    """20 images; `file` replaces the one at row `at`."""
    files = [{"bytes": png(i), "path": f"{i}.png"} for i in range(20)]
    files[at] = file
    features = Features(image=Image(), label=ClassLabel(names=NAMES))
    table = pa.table(
        {"image": pa.array(files, features.arrow_schema.field("image").type), "label": [i % 2 for i in range(20)]}
    )
    return Dataset(table.cast(features.arrow_schema).replace_schema_metadata(features.arrow_schema.metadata))


def write(kind: str, dataset: Dataset, root) -> None:
    """Write files of a kind that keep the paths; datasets' own writers would embed the bytes."""
    root.mkdir()
    if kind == "parquet":
        pa.parquet.write_table(dataset.data.table, root / "train.parquet")
    else:
        small = DatasetDict(train=dataset.select([0]))
        small.save_to_disk(root)
        with pa.OSFile(str(next(root.glob("train/*.arrow"))), "wb") as file:
            pa.ipc.new_stream(file, dataset.data.table.schema).write_table(dataset.data.table)


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.png", "{root}/../secret.png", "{root}x/1.png", "https://x/1.png"]
)
def test_a_row_that_names_a_file_elsewhere(tmp_path, load, refused, kind, path):
    (tmp_path / "secret.png").write_bytes(png(255))
    path = path.format(root=tmp_path / "data")
    write(kind, rows_with({"bytes": None, "path": path}), tmp_path / "data")
    with refused("train, row 7", path, str(tmp_path / "data")):
        load(tmp_path / "data")


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_a_row_that_names_a_file_of_the_dataset(tmp_path, load, values_of, kind):
    path = tmp_path / "data/images/7.png"
    write(kind, rows_with({"bytes": None, "path": str(path)}), tmp_path / "data")
    path.parent.mkdir()
    path.write_bytes(png(77))
    data = load(tmp_path / "data")
    assert 77 in [value for rows in data.values() for value in values_of(rows)]


def test_a_row_of_a_hub_dataset_that_names_a_local_file(load, refused, monkeypatch):
    bad = rows_with({"bytes": None, "path": "/etc/passwd"})
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: DatasetDict(train=bad))
    monkeypatch.setattr(sources, "from_hub", lambda load, what, fix: load())
    with refused("train, row 7", "/etc/passwd"):
        load(dataset="owner/name")


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
@pytest.mark.parametrize("file", [None, {"bytes": None, "path": None}])
def test_a_row_without_an_image_is_a_bad_image(tmp_path, load, kind, file):
    write(kind, rows_with(file), tmp_path / "data")
    train = load(tmp_path / "data", validation_size=0.1, test_size=0.1)
    bad = [about for rows in train.values() for about in _skipped(rows, tmp_path)]
    assert [about["index"] for about in bad] == [7] and bad[0]["xxh3_64"] is None


def _skipped(rows: Dataset, tmp_path) -> list[dict]:
    return image_tensors(rows, ViTImageProcessor(size={"height": 4, "width": 6}), 1, str(tmp_path / "cache")).skipped


def table_of(folder, paths: list) -> None:
    text = "image,label\n" + "\n".join(f"{path},{NAMES[i % 2]}" for i, path in enumerate(paths))
    folder.mkdir()
    (folder / "train.csv").write_text(text)


def test_a_list_that_the_user_names_may_name_any_file(tmp_path, load, refused, values_of):
    """A list inside a data folder came with it; one passed as `data_dir` is the user's own."""
    (tmp_path / "elsewhere").mkdir()
    for i in range(20):
        (tmp_path / f"elsewhere/{i}.png").write_bytes(png(i))
    paths = [f"../elsewhere/{i}.png" if i % 3 else tmp_path / f"elsewhere/{i}.png" for i in range(20)]
    table_of(tmp_path / "data", paths)
    with refused("row", str(tmp_path / "elsewhere"), "--data_dir"):
        load(tmp_path / "data")
    data = load(tmp_path / "data/train.csv")
    assert sorted(value for rows in data.values() for value in values_of(rows)) == list(range(20))


def test_archives_are_never_extracted_to_disk(tmp_path, load, values_of):
    root = tmp_path / "deep/data"
    root.mkdir(parents=True)
    with tarfile.open(root / "train.tar", "w") as archive:
        for i in range(20):
            for name, content in ((f"../../out/{i}.png", png(i)), (f"../../out/{i}.cls", str(i % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("../../out/21.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data = load(root)
    assert sorted(value for rows in data.values() for value in values_of(rows)) == list(range(20))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix != ".lock") == ["data", "deep", "train.tar"]


def test_circular_and_broken_links(picture_folder, load, tmp_path):
    """A folder linked into itself is walked once; a broken link is an image that cannot be read."""
    root = picture_folder({"a": 15, "b": 15})
    os.symlink(root, root / "a" / "again")
    os.symlink("self.png", root / "a" / "self.png")
    os.symlink("gone.png", root / "b" / "link.png")
    data = load(root)
    assert sum(len(rows) for rows in data.values()) == 32
    bad = [about for rows in data.values() for about in _skipped(rows, tmp_path)]
    assert sorted(about["file"].rsplit("/", 1)[1] for about in bad) == ["link.png", "self.png"]
