"""Fuzzing of files and command lines: any input is accepted, or refused with a message, and nothing else happens.

The inputs are the same each time. `FTKIT_FUZZ=2000 pytest tests/test_fuzz.py` tries 2,000 for each test; where an
input kills the process, `-x --full-trace` and the last lines of `-s` show which.
"""

# ruff: noqa: E501

import io
import json
import os
import pickle
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from support import REPO
from transformers import HfArgumentParser, ViTImageProcessor

from ftkit.config import DataArguments, ModelArguments
from ftkit.config.loader import GROUPS
from ftkit.data.pixels.decoding import Decoder
from ftkit.data.pixels.images import ImageInfo, describe_images
from ftkit.data.sources.load import load_data
from ftkit.data.sources.raw import cifar_kind, read_cifar_folder, read_idx
from ftkit.errors import UserError
from ftkit.files import hidden
from ftkit.models.classifier import Classifier
from ftkit.models.weights import load_weights
from ftkit.owners import parse_config, parse_evaluation
from ftkit.tasks import SingleLabel
from ftkit.training.checkpointing.checkpoints import defect_of, newest_complete, seal

HANGS = 30  # seconds
fuzz = settings(
    max_examples=int(os.environ.get("FTKIT_FUZZ", 40)), derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@contextmanager
def taken_or_refused() -> Iterator[None]:
    """The only outcomes: success, or a `UserError` with a message; any other exception or a hang fails."""
    signal.alarm(HANGS)
    try:
        yield
    except UserError as error:
        assert str(error).strip()
    finally:
        signal.alarm(0)


@pytest.fixture(scope="module", autouse=True)
def hangs_are_found():
    """Turn SIGALRM into an exception."""

    def hang(*_):
        raise TimeoutError(f"nothing came back in {HANGS} s")

    before = signal.signal(signal.SIGALRM, hang)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory):
    """An empty working folder, without data of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.delenv("FTKIT_DATA_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for all inputs of a test."""
    return tmp_path_factory.mktemp("fuzz")


# --- damage to files

ODD_BYTES = st.sampled_from(
    [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3]
)


@st.composite
def damaged(draw: st.DrawFn, *files: bytes) -> bytes:
    """One of the files with bytes changed, cut, inserted or repeated; mostly near the beginning."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 5))):
        place = draw(st.integers(0, min(len(data), draw(st.sampled_from([40, 200, len(data)])))))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["set", "set", "flip", "cut", "end", "put", "repeat", "swap"])):
            case "set":
                new = draw(st.one_of(ODD_BYTES, st.binary(min_size=1, max_size=4)))
                data[place : place + len(new)] = new
            case "flip" if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place : place + length]
            case "end":
                del data[place:]
            case "put":
                data[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "repeat":
                data[place:place] = data[place : place + length] * draw(st.integers(1, 20))
            case "swap":
                data[place : place + 2] = data[place : place + 2][::-1]
    return bytes(data)


# --- configurations

KEYS = sorted({option.dest for option in HfArgumentParser(GROUPS)._actions} - {"help"})
ODD = ["nan", ".nan", "inf", "-inf", ".inf", "1e400", "-1e400", "1e-400", "-0.0", "9" * 400, "-1", "0", "1", "2", "0x10",
       "1_000", "1:30", "2024-01-01", "007", "0.5", "1e3", "1e999999999", "true", "no", "null", "~", "", "''", "[]", "{}",
       "[[]]", "[1, 2]", "[nan]", "[a, a]", "{a: {b: [1, {c: null}]}}", "{1: 2}", "{null: 1}", "{[1]: 2}", "{a: .nan}",
       "[{}]", "{a: 2024-01-01}", "!!python/object:os.system x", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
       "!!float x", "!!int x", "!!int ''", "!!bool x", "!!timestamp x", "!!null x", "!!str [a]", "!!merge x", "!x y", "&a [*a]",
       "*nowhere", "&a {b: *a}", "{<<: 1}", "{<<: [1]}", "{<<: {a: 1}}", "{a: !!binary '!'}", "{a: !!int x}",
       "{a: !!timestamp 2024-13-45}", "é", "\u202e", "ｎａｎ", "١٢", "\ud7ff", "a" * 5000, "~nosuchuser", "[" * 1000, "{a: " + "[" * 150 + "]" * 150 + "}", "~", "/", "..", ".",
       "/dev/null", "a\0b", '"\\0"', '"\\uD800"', "'{\"a\": 1'", "'[1, 2'", "'[{\"flip\": NaN}]'", "'{\"r\": 1e999}'",
       "'" + "[" * 2000 + "'", "[" * 300 + "]" * 300, "digits", "mnist", "resnet18", "timm/resnet18", "timm/", "timm", "a/b/c",
       "lora", "scratch", "full", "surgical", "oft", "steps", "epoch", "constant", "sgd", "timm/sgd", "timm/adahessian",
       "adamw_torch", "tensorboard", "all", "none", "cpu", "linear", "cosine_with_min_lr", "weights.pth",
       "[flip, {cutout: {size: 3}}]", "[{random_crop: {padding: -1}}]", "[{rotate: {degrees: .inf}}]", "[{1: 2}]",
       "[{affine: {scale: [1]}}]", "[{cutout: {size: .nan}}]", "[{flip: 1, cutout: 2}]", "[[flip]]", "{flip: {}}",
       "[{train: head}]", "[{train: {last: 0}}]", "[{train: {last: 1}}]", "[{train: []}]", "[{train: [a, 1]}]",
       "[{train: head, name: ..}]", "[{train: all, learning_rate: x}]", "[{train: all, learning_rate: [1, 2]}]",
       "[{train: all, num_train_epochs: .nan}]", "[{train: all, seed: 1}]", "[{train: all, 1: 2}]",
       "[{train: all, optim_args: a}]", "[{train: all, lr_scheduler_kwargs: {a: 1}}]", "[{train: all, name: null}]",
       "[{train: all, name: [1]}]", "[{train: all, learning_rate: null}]", "[{train: all, learning_rate: {a: 1}}]",
       "[head]", "{r: 8}", "{r: {}}", "{r: eight}", "{r: .nan}", "{modules_to_save: 1}", "{target_modules: {a: 1}}",
       "{layers_pattern: 1}", "{hidden_sizes: x}", "a=(1", "eps=1", "betas=(0.9, 0.95),eps=1e-6", "a=b", "1", "**{}",
       "a=" + "(" * 300 + ")" * 300, "{hflip: x}", "{auto_augment: 1}", "{img_size: 3}", "{1: 2}"]  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = [path.read_bytes() for path in sorted((REPO / "recipes").rglob("*.yaml"))]
values = st.one_of(
    st.sampled_from(ODD),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=12),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=6,
    ).map(lambda value: yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()),
)
recipes = st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=5).map(
    lambda pairs: "".join(f"{key}: {value}\n" for key, value in pairs)
)


@fuzz
@given(recipe=recipes, digits=st.booleans())
def test_a_recipe_of_odd_values(place, recipe, digits):
    path = place / "recipe.yaml"
    path.write_text(recipe + "dataset: digits\n" * digits, encoding="utf-8", errors="surrogatepass")
    with taken_or_refused():
        parse_config(["--config", str(path)]).to_yaml()


@fuzz
@given(key=st.sampled_from(KEYS), value=values, line=st.booleans())
def test_a_single_odd_value(place, key, value, line):
    path = place / "recipe.yaml"
    path.write_text("dataset: digits\n" + f"{key}: {value}\n" * (not line), encoding="utf-8", errors="surrogatepass")
    with taken_or_refused():
        parse_config(["--config", str(path), *([f"--{key}", value] * line)]).to_yaml()


@fuzz
@given(data=st.one_of(damaged(*RECIPES, BOMB.encode()), st.binary(max_size=200)))
@example(BOMB.encode())
def test_a_damaged_recipe(place, data):
    path = place / "recipe.yaml"
    path.write_bytes(data)
    with taken_or_refused():
        parse_config(["--config", str(path)]).to_yaml()


words = st.one_of(st.sampled_from(KEYS).map("--{}".format), st.sampled_from(KEYS).map("--{}=".format), values,
                  st.sampled_from(["--config", "--", "-", "---", "--=", "--config=", "--no_bf16"]))  # fmt: skip


@fuzz
@given(arguments=st.lists(words.filter(lambda word: "help" not in word), max_size=8), evaluation=st.booleans())
def test_a_command_line(arguments, evaluation):
    with taken_or_refused():
        (parse_evaluation if evaluation else parse_config)(arguments)


# --- IDX files, CIFAR batches, tables

rng = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def zipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


IDX_IMAGES, IDX_LABELS = idx(rng.integers(0, 256, (20, 4, 3), np.uint8)), idx(np.arange(20, dtype=np.uint8) % 2)
IDX_FILES = [IDX_IMAGES, IDX_LABELS, zipped(IDX_IMAGES), zipped(IDX_LABELS)]


@fuzz
@given(data=st.one_of(damaged(*IDX_FILES), damaged(IDX_IMAGES, IDX_LABELS).map(zipped), st.binary(max_size=40)))
def test_an_idx_file(place, data):
    (place / "file").write_bytes(data)
    with taken_or_refused():
        read_idx(place / "file")


@fuzz
@given(images=damaged(*IDX_FILES), labels=damaged(*IDX_FILES))
def test_a_folder_of_idx_files(tmp_path_factory, images, labels):
    folder = tmp_path_factory.mktemp("idx")
    (folder / "train-images-idx3-ubyte").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    with taken_or_refused():
        load_data(DataArguments(data_dir=str(folder)))


CIFAR = {b"labels": [0, 1] * 2, b"fine_labels": [0, 1] * 2, b"data": rng.integers(0, 256, (4, 3072), np.uint8)}
NAMES = {b"label_names": [b"a", b"b"], b"fine_label_names": [b"a", b"b"], b"num_vis": 3072}
CIFAR_FILES = [pickle.dumps(content, protocol) for content in (CIFAR, NAMES) for protocol in (0, 2, 4)]


@fuzz
@given(damaged=damaged(*CIFAR_FILES), where=st.sampled_from(["train", "test", "meta"]))
def test_a_batch_of_cifar(place, damaged, where):
    whole = {"train": CIFAR_FILES[1], "test": CIFAR_FILES[1], "meta": CIFAR_FILES[4]}
    for name, data in (whole | {where: damaged}).items():
        (place / name).write_bytes(data)
    with taken_or_refused():
        splits, names = read_cifar_folder(place, cifar_kind(place))
        assert all(images.shape[1:] == (32, 32, 3) for images, _ in splits.values()) and names


ROWS = [(f"{i}.png", "cat" if i % 2 else "dog") for i in range(20)]
TABLES = {
    ".csv": "image,label\n" + "".join(f"{image},{label}\n" for image, label in ROWS),
    ".tsv": "image\tlabel\tsplit\n" + "".join(f"{image}\t{label}\ttrain\n" for image, label in ROWS),
    ".jsonl": "".join(json.dumps({"image": image, "label": label}) + "\n" for image, label in ROWS),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table(tmp_path, suffix):
    for name, _ in ROWS:
        Image.new("L", (2, 2)).save(tmp_path / name)
    odd = st.text(st.sampled_from(",\t\"\n\r\\'{}[]:0a./~\0é\ud800"), max_size=30).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )

    @fuzz
    @given(data=st.one_of(damaged(TABLES[suffix].encode()), odd, odd.map(TABLES[suffix].encode().__add__)))
    def read(data):
        (tmp_path / f"table{suffix}").write_bytes(data)
        with taken_or_refused():
            load_data(DataArguments(data_dir=str(tmp_path / f"table{suffix}")))

    read()


# --- images


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """Files of common formats and modes."""
    gray = Image.fromarray(rng.integers(0, 256, (12, 17), np.uint8))
    color = Image.fromarray(rng.integers(0, 256, (12, 17, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (12, 17, 4), np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (12, 17), np.uint16))
    floats = Image.fromarray(rng.random((12, 17), np.float32))
    whole = Image.fromarray(rng.integers(0, 2**16, (12, 17), np.int32))
    palette, turned = color.quantize(16), Image.Exif()
    turned[0x0112] = 6
    several = {"save_all": True, "append_images": [color.rotate(90), palette.convert("RGB")]}
    files = {
        "gray.png": saved(gray, "PNG"), "alpha.png": saved(alpha, "PNG", exif=turned),
        "palette.png": saved(palette, "PNG", transparency=3), "deep.png": saved(deep, "PNG"),
        "text.png": saved(color, "PNG", pnginfo=None, exif=turned, dpi=(72, 72)), "one.png": saved(gray.convert("1"), "PNG"),
        "several.png": saved(color, "PNG", **several), "gray.jpg": saved(gray, "JPEG"),
        "color.jpg": saved(color, "JPEG", exif=turned, progressive=True), "cmyk.jpg": saved(color.convert("CMYK"), "JPEG"),
        "palette.gif": saved(palette, "GIF", transparency=2), "several.gif": saved(color, "GIF", **several),
        "color.webp": saved(color, "WEBP", exif=turned), "alpha.webp": saved(alpha, "WEBP", lossless=True),
        "several.webp": saved(color, "WEBP", **several), "color.tif": saved(color, "TIFF", exif=turned),
        "palette.tif": saved(palette, "TIFF"), "float.tif": saved(floats, "TIFF"), "whole.tif": saved(whole, "TIFF"),
        "deep.tif": saved(deep, "TIFF", compression="tiff_deflate"), "lzw.tif": saved(alpha, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": saved(color, "TIFF", compression="jpeg"), "fax.tif": saved(gray.convert("1"), "TIFF", compression="group4"),
        "several.tif": saved(color, "TIFF", **several), "palette.bmp": saved(palette, "BMP"), "alpha.bmp": saved(alpha, "BMP"),
        "color.jp2": saved(color, "JPEG2000"), "deep.ppm": saved(deep, "PPM"), "color.mpo": saved(color, "MPO", **several),
        "color.ppm": b"P3 2 1 255 1 2 3 4 5 6 ", "float.pfm": saved(floats, "PPM"),
    }  # fmt: skip
    for kind in (
        "AVIF",
        "DDS",
        "DIB",
        "ICNS",
        "ICO",
        "IM",
        "MSP",
        "PCX",
        "QOI",
        "SGI",
        "SPIDER",
        "TGA",
        "XBM",
        "BLP",
        "EPS",
    ):
        image = {"MSP": gray.convert("1"), "XBM": gray.convert("1"), "SPIDER": floats, "BLP": palette}.get(kind, color)
        files[kind] = saved(image, kind)
    Image.EXTENSION.pop("", None)  # an older Pillow takes the suffix of what it saves as SPIDER for that format's
    return files


IMAGES = images()
DECODERS = [ViTImageProcessor(size={"height": 4, "width": 6}), ViTImageProcessor(do_resize=False)]


def decode(data: bytes, channels: int, processor=DECODERS[0]) -> None:
    """The image has pixels, or is bad with a reason."""
    features = Features(image=ImageFeature(), index=Value("int64"))
    rows = Dataset.from_dict({"image": [{"bytes": data, "path": None}], "index": [7]}, features=features)
    describe_images(rows)
    decoded = Decoder(rows, processor, channels)([0])
    assert (len(decoded.positions), len(decoded.bad)) in ((1, 0), (0, 1))
    if decoded.bad:
        assert decoded.bad[0]["index"] == 7 and decoded.bad[0]["reason"]
    else:
        assert decoded.pixels.dtype == np.uint8 and decoded.pixels.shape[:2] == (1, channels)


@fuzz
@given(
    data=st.one_of(damaged(*IMAGES.values()), damaged(*IMAGES.values()), st.binary(max_size=100)),
    channels=st.sampled_from([1, 3]),
    processor=st.sampled_from(DECODERS),
)
@pytest.mark.filterwarnings("ignore")
def test_an_image(data, channels, processor):
    with taken_or_refused():
        decode(data, channels, processor)


# --- checkpoints and weights


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage with two complete checkpoints."""
    stage = tmp_path_factory.mktemp("stage")
    for step in (1, 2):
        checkpoint = stage / f"checkpoint-{step}"
        hidden(checkpoint).mkdir()
        (hidden(checkpoint) / "model.safetensors").write_bytes(b"weights" * step)
        (hidden(checkpoint) / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
        seal(hidden(checkpoint), checkpoint)
    return stage


STATES = [b'{"best_model_checkpoint": "runs/a/checkpoint-1", "global_step": 2}', b'{"best_model_checkpoint": null}']
odd_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("a\0b")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["best_model_checkpoint", "model.safetensors", "size", "..", ""]), inner),
    ),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())


@fuzz
@given(data=st.data())
def test_a_manifest(stage, data):
    manifest = stage / "checkpoint-2" / "manifest.json"
    whole = manifest.read_bytes()
    try:
        manifest.write_bytes(data.draw(st.one_of(damaged(whole), odd_json)))
        with taken_or_refused():
            wrong = defect_of(manifest.parent)
            assert newest_complete(stage).name == ("checkpoint-1" if wrong else "checkpoint-2")
    finally:
        manifest.write_bytes(whole)


@fuzz
@given(data=st.one_of(damaged(*STATES), odd_json))
def test_a_trainers_state_that_the_manifest_lists(stage, data):
    checkpoint = stage / "checkpoint-3"
    aside = stage / ".aside"
    aside.mkdir()
    (aside / "trainer_state.json").write_bytes(data)
    seal(aside, checkpoint)
    with taken_or_refused():
        assert newest_complete(stage) is not None


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    args = ModelArguments(model="mlp", model_args={"hidden_sizes": [4, 3]})
    return Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((2, 2), 1), pretrained=False).model


def torch_saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


WEIGHTS = {"0.weight": torch.rand(4, 4), "0.bias": torch.rand(4), "2.weight": torch.rand(3, 4), "2.bias": torch.rand(3),
           "4.weight": torch.rand(2, 3), "4.bias": torch.rand(2)}  # fmt: skip
SAFETENSORS = save(WEIGHTS)
PICKLED = [torch_saved(WEIGHTS), torch_saved({"state_dict": WEIGHTS}, _use_new_zipfile_serialization=False),
           torch_saved(torch.nn.Sequential(torch.nn.Linear(4, 4))), torch_saved(WEIGHTS["0.bias"])]  # fmt: skip


@fuzz
@given(data=damaged(SAFETENSORS))
def test_a_safetensors_file(place, model, data):
    (place / "weights.safetensors").write_bytes(data)
    with taken_or_refused():
        load_weights(model, place / "weights.safetensors")


@fuzz
@given(data=damaged(*PICKLED, pickle.dumps({"a": 1})))
def test_a_file_of_torch_save(place, model, data):
    (place / "weights.pth").write_bytes(data)
    with taken_or_refused():
        load_weights(model, place / "weights.pth")
