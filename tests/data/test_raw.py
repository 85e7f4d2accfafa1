"""IDX files and CIFAR batches: the right values, or one message about the broken file."""

import gzip
import os
import pickle
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from ftkit.data.sources.raw import read_idx
from ftkit.errors import UserError

rng = np.random.default_rng(0)
IMAGES = {"train": rng.integers(0, 256, (40, 5, 7), np.uint8), "t10k": rng.integers(0, 256, (8, 5, 7), np.uint8)}
LABELS = {split: np.arange(len(images), dtype=np.uint8) % 2 for split, images in IMAGES.items()}


def idx_bytes(array: np.ndarray) -> bytes:
    kind, values = (8, array) if array.dtype == np.uint8 else (12, array.astype(">i4"))
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + values.tobytes()


@pytest.fixture(params=["plain", "gz"])
def idx_folder(request, tmp_path):
    """The four files of MNIST."""
    for split, images in IMAGES.items():
        for name, array in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", LABELS[split])):
            data = idx_bytes(array)
            suffix = "" if request.param == "plain" else ".gz"
            (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    return tmp_path


def test_idx_files_round_trip(idx_folder, load, labels_of):
    data = load(idx_folder, dataset="mnist")
    for split, name in (("train", "train"), ("validation", "train"), ("test", "t10k")):
        rows = data[split]["index"][:]
        assert np.array_equal(np.stack([np.asarray(image) for image in data[split]["image"]]), IMAGES[name][rows])
        assert labels_of(data[split]) == [str(label) for label in LABELS[name][rows]]
    assert sorted(data["train"]["index"][:] + data["validation"]["index"][:]) == list(range(40))
    assert data["test"]["index"][:] == list(range(8))


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "train_images-idx3-ubyte"])
def test_other_spellings_of_the_file_names(tmp_path, load, name):
    (tmp_path / name).write_bytes(idx_bytes(IMAGES["train"]))
    (tmp_path / name.replace("images", "labels").replace("idx3", "idx1")).write_bytes(idx_bytes(LABELS["train"]))
    assert len(load(tmp_path)["train"]) == 28


def test_fashion_mnist_has_its_names(tmp_path, load):
    labels = np.arange(200, dtype=np.uint8) % 10
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((200, 2, 2), np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    assert load(tmp_path, dataset="fashion_mnist")["train"].features["label"].names[9] == "Ankle boot"
    assert load(tmp_path)["train"].features["label"].names == [str(i) for i in range(10)]


def write_set(folder: Path, name: str, labels: np.ndarray, kind: str = "labels-idx1-ubyte") -> None:
    """Train and test of another data set, each with the images of train."""
    for split in ("train", "test"):
        (folder / f"{name}-{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(IMAGES["train"])))
        (folder / f"{name}-{split}-{kind}.gz").write_bytes(gzip.compress(idx_bytes(labels)))


def test_emnist_is_turned_upright_and_has_its_characters(tmp_path, load, labels_of, refused):
    write_set(tmp_path, "emnist-letters", LABELS["train"] + 1)
    write_set(tmp_path, "emnist-digits", LABELS["train"])
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n")
    with refused("emnist-digits", "emnist-letters", "--data_dir"):
        load(tmp_path)
    test = load(tmp_path / "emnist-letters-train-labels-idx1-ubyte.gz")["test"]
    assert np.array_equal(np.stack([np.asarray(image) for image in test["image"]]), IMAGES["train"].transpose(0, 2, 1))
    assert labels_of(test) == ["A", "B"] * 20
    (tmp_path / "emnist-letters-mapping.txt").unlink()
    data = load(tmp_path / "emnist-letters-test-images-idx3-ubyte.gz")
    assert data["train"].features["label"].names == ["1", "2"]


def test_qmnist_keeps_more_than_the_class_of_each_image(tmp_path, load, labels_of):
    labels = np.stack([LABELS["train"], *[np.full(40, 300)] * 7], axis=1)
    write_set(tmp_path, "qmnist", labels, "labels-idx2-int")
    assert labels_of(load(tmp_path)["test"]) == ["0", "1"] * 20


def test_folders_with_the_names_of_files(idx_folder, load):
    """As some programs unpack the files; a file of the other spelling may lie beside them."""
    for path in [path for path in idx_folder.iterdir() if path.is_file()]:
        aside = path.rename(idx_folder / "aside")
        path.mkdir()
        aside.rename(path / path.name)
    assert [len(rows) for rows in load(idx_folder).values()] == [36, 4, 8]


VALID = idx_bytes(IMAGES["train"])
BROKEN = {
    "no bytes": b"",
    "cut in the magic number": VALID[:3],
    "cut in the header": VALID[:10],
    "no values": VALID[:16],
    "cut in the values": VALID[:-1],
    "one byte too many": VALID + b"\0",
    "wrong magic number": b"\1\0" + VALID[2:],
    "four dimensions": VALID[:3] + b"\4" + VALID[4:],
    "no dimensions": VALID[:3] + b"\0" + VALID[4:],
    "floats": VALID[:2] + b"\x0d" + VALID[3:],
    "little-endian dimensions": VALID[:4] + struct.pack("<3I", *IMAGES["train"].shape) + VALID[16:],
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "gzip, cut": gzip.compress(VALID)[:-20],
    "gzip, cut in its header": gzip.compress(VALID)[:6],
    "gzip, header alone": gzip.compress(VALID)[:2],
    "gzip, flipped": gzip.compress(VALID)[:100] + b"\xff\xff\xff" + gzip.compress(VALID)[103:],
    "gzip, followed by rubbish": gzip.compress(VALID) + b"rubbish",
    "gzip of something else": gzip.compress(b"hello"),
    "gzip of a cut file": gzip.compress(VALID[:-5]),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_idx_file_is_named(idx_folder, load, refused, data):
    path = next(idx_folder.glob("train-images*"))
    path.write_bytes(data)
    with refused(path):
        load(idx_folder)


@pytest.mark.parametrize("announced", [(40, 5, 7), (1 << 20, 64, 64), (0xFFFFFFFF,) * 3])
def test_a_gzip_bomb_is_not_unpacked(tmp_path, announced):
    """256 MiB of zeros in 256 kB, with any header: never more than a chunk is held."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *announced))
    for _ in range(16):
        packed += packer.compress(bytes(1 << 24))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(packed + packer.flush())
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{path}.*(too long|announce)"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.parametrize(
    "file, data, words",
    [
        ("train-images", None, ["train-images-idx3-ubyte"]),
        ("train-labels", None, ["labels of train", "missing"]),
        ("t10k-labels", None, ["labels of test", "missing"]),
        ("t10k-images", None, ["images of test", "missing"]),
        ("train-labels", idx_bytes(LABELS["train"][:-1]), ["train", "(40, 5, 7)", "(39,)"]),
        ("train-labels", VALID, ["train", "(40, 5, 7)"]),
        ("t10k-images", idx_bytes(LABELS["t10k"]), ["test", "(8,)"]),
    ],
)
def test_idx_files_that_do_not_fit_together(idx_folder, load, refused, file, data, words):
    path = next(idx_folder.glob(f"{file}*"))
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with refused(idx_folder, *words):
        load(idx_folder)


@pytest.mark.parametrize("split, name", [("train", "train"), ("t10k", "test")])
def test_idx_files_without_images(idx_folder, load, refused, split, name):
    next(idx_folder.glob(f"{split}-images*")).write_bytes(idx_bytes(np.zeros((0, 5, 7), np.uint8)))
    next(idx_folder.glob(f"{split}-labels*")).write_bytes(idx_bytes(np.zeros(0, np.uint8)))
    with refused(name):
        load(idx_folder)


def test_a_damaged_idx_file_is_refused_or_read_literally(tmp_path):
    """Never another exception, and never values that are not in the file."""
    random.seed(0)
    path = tmp_path / "file"
    outcomes = {"read": 0, "refused": 0}
    for source in (VALID, gzip.compress(VALID), idx_bytes(LABELS["train"]), gzip.compress(idx_bytes(LABELS["train"]))):
        for _ in range(150):
            data = bytearray(source)
            for _ in range(random.choice([0, 1, 1, 3])):
                data[random.randrange(min(len(data), random.choice([4, 20, len(data)])))] = random.randrange(256)
            if random.random() < 0.3:
                del data[random.randrange(len(data)) :]
            path.write_bytes(data)
            try:
                array = read_idx(path)
            except UserError as error:
                assert str(path) in str(error)
                outcomes["refused"] += 1
            else:
                plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                assert idx_bytes(array) == plain
                outcomes["read"] += 1
    assert min(outcomes.values()) > 60


# --- CIFAR


def cifar(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Write the original layout with two alternating classes; returns images (N, 32, 32, 3) by split."""
    images = {split: rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in (("train", 40), ("test", 6))}
    rows = {split: array.transpose(0, 3, 1, 2).reshape(-1, 3072) for split, array in images.items()}
    names = [b"cat", b"dog"]
    if name == "cifar100":
        for split, data in rows.items():
            labels = [i % 2 for i in range(len(data))]
            dump(folder / split, {b"fine_labels": labels, b"coarse_labels": [0] * len(data), b"data": data})
        dump(folder / "meta", {b"fine_label_names": names, b"coarse_label_names": [b"animal"]})
    else:
        batches = {f"data_batch_{i + 1}": rows["train"][8 * i : 8 * i + 8] for i in range(5)}
        for file, data in (batches | {"test_batch": rows["test"]}).items():
            dump(folder / file, {b"batch_label": b"x", b"labels": [i % 2 for i in range(len(data))], b"data": data})
        dump(folder / "batches.meta", {b"num_cases_per_batch": 8, b"label_names": names, b"num_vis": 3072})
    return images


def dump(path: Path, content) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("named", [True, False])
def test_cifar_batches_round_trip(tmp_path, load, labels_of, name, named):
    images = cifar(tmp_path, name)
    data = load(tmp_path, dataset=name if named else None)
    for split, source in (("train", "train"), ("validation", "train"), ("test", "test")):
        rows = data[split]["index"][:]
        assert np.array_equal(np.stack([np.asarray(i) for i in data[split]["image"]]), images[source][rows])
        assert labels_of(data[split]) == [("cat", "dog")[row % 2] for row in rows]
    assert len(data["train"]) + len(data["validation"]) == 40


def test_batches_of_the_original_publication_load(tmp_path, load):
    """Python 2 and old numpy: text keys as `str`, and `numpy.core.multiarray`."""
    cifar(tmp_path, "cifar10")
    path = tmp_path / "data_batch_1"
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(load(tmp_path)["test"]) == 6


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_malicious_batch_is_refused_and_does_not_run(tmp_path, load, refused, name):
    cifar(tmp_path, "cifar10")
    dump(tmp_path / name, {b"data": Malicious(tmp_path / "harm")})
    with refused(tmp_path / name, "mkdir"):
        load(tmp_path)
    assert not (tmp_path / "harm").exists()


ZEROS = np.zeros((8, 3072), np.uint8)
BAD_BATCHES = {
    "data_batch_2": [
        b"",
        b"not a pickle",
        pickle.dumps({b"data": ZEROS, b"labels": [0] * 8})[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [0] * 8}),
        pickle.dumps({b"data": ZEROS}),
        pickle.dumps({b"data": ZEROS, b"labels": [0] * 7}),
        pickle.dumps({b"data": ZEROS, b"labels": 8}),
        pickle.dumps({b"data": ZEROS, b"labels": ["cat"] * 8}),
        pickle.dumps({b"data": ZEROS.astype(np.float32), b"labels": [0] * 8}),
        pickle.dumps({b"data": ZEROS[:, :-1], b"labels": [0] * 8}),
    ],
    "batches.meta": [b"", pickle.dumps({b"num_vis": 3072}), pickle.dumps({b"label_names": None})],
    "test_batch": [None],
}


@pytest.mark.parametrize(
    "name, data",
    [
        pytest.param(name, data, id=f"{name}-{i}")
        for name, cases in BAD_BATCHES.items()
        for i, data in enumerate(cases)
    ],
)
def test_a_broken_batch_is_named(tmp_path, load, refused, name, data):
    cifar(tmp_path, "cifar10")
    if data is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(data)
    with refused(tmp_path / name):
        load(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_refused(tmp_path, load, refused, label):
    cifar(tmp_path, "cifar10")
    dump(tmp_path / "data_batch_2", {b"data": ZEROS, b"labels": [label] * 8})
    with refused(tmp_path, label, "2 classes"):
        load(tmp_path)
