"""Exports: the same answers without ftkit for any batch size; a failed export leaves no files."""

import copy
import importlib.util
import json
import pickle
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import FAMILIES
from support import finetune, load_recipe_script, noise_images

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

DIGITS = ["--dataset", "digits", "--classes", "0", "1"]
FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "int8": "model_int8.onnx"}


def export(*words):
    """Run recipes/export.py, with few repeats."""
    load_recipe_script("export").main([*map(str, words), "--repeats", "2"])


def run_onnx(path, pixel_values):
    """Logits by onnxruntime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(["logits"], {"pixel_values": np.asarray(pixel_values, np.float32)})[0]


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def rnn(tmp_path_factory):
    """A recurrent network with random weights for the digits 0 and 1, saved."""
    from ftkit.config import ModelArguments
    from ftkit.data.pixels.images import ImageInfo
    from ftkit.models.classifier import Classifier
    from ftkit.tasks import SingleLabel

    path, args = tmp_path_factory.mktemp("rnn"), ModelArguments(model="rnn", model_args={"hidden_size": 8})
    Classifier.build(args, SingleLabel(["0", "1"]), ImageInfo((8, 8), 1), pretrained=False).save(path)
    return path


@pytest.fixture(scope="session")
def exported(digits_run, tmp_path_factory):
    """All formats of a finished run on the digits."""
    folder = tmp_path_factory.mktemp("exported") / "new" / "export"
    export("--model", digits_run, "--format", "all", "--output_dir", folder)
    return folder


def digits_test():
    """The test images of `digits_run`, uint8 (N, 8, 8), and their labels."""
    from ftkit.config import DataArguments
    from ftkit.data.sources.load import load_data

    test = load_data(DataArguments(dataset="digits"))["test"]
    return np.stack([np.asarray(image) for image in test["image"]]), np.array(test["label"])


def test_a_run_is_exported_and_recorded(exported, digits_run):
    assert {*FILES.values(), "export.json", "preprocessing.json"} <= set(left_in(exported))
    assert left_in(exported.parent) == ["export"]
    record = json.loads((exported / "export.json").read_text())
    stored = json.loads((digits_run / "evaluation" / "metrics.json").read_text())
    assert (record["n"], record["split"], record["repeats"], record["calibration_images"]) == (360, "test", 2, 256)
    assert {"command", "threads", "platform"} <= record.keys() and "onnxruntime" in record["versions"]
    rows = record["formats"]
    assert list(rows) == ["pytorch", *FILES]
    for name, row in rows.items():
        assert row["megabytes"] > 0.2
        assert [sorted(times) for times in row["milliseconds"].values()] == [["median", "p95"]] * 2
        assert all(0 < times["median"] <= times["p95"] for times in row["milliseconds"].values())
        if name != "int8":
            assert row["accuracy"] == pytest.approx(stored["accuracy"], abs=1.1 / 360)  # one may be a tie
            assert row["same_predictions"] > 358 / 360
    assert rows["onnx"]["largest_difference"] < 1e-4
    assert rows["int8"]["accuracy"] > stored["accuracy"] - 0.02
    assert rows["int8"]["megabytes"] < rows["onnx"]["megabytes"] / 2


def test_the_sidecar_is_enough_to_feed_an_export(exported, digits_run):
    """With numpy and onnxruntime, following the file, images give the logits that the run stored."""
    from ftkit.evaluation.predictions import read_predictions

    about, stored = (
        json.loads((exported / "preprocessing.json").read_text()),
        read_predictions(digits_run / "evaluation"),
    )
    assert about["input"] == {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
    assert about["output"]["shape"] == ["batch", 10] and about["class_names"] == [str(i) for i in range(10)]
    assert (about["channels"], len(about["mean"]), about["image_processor"]["size"]) == (
        ["grey"], 1, {"height": 8, "width": 8}
    )  # fmt: skip
    pixels, labels = digits_test()
    values = (pixels[:, None] / 255 - about["mean"][0]) / about["std"][0]
    logits = run_onnx(exported / "model.onnx", values)
    np.testing.assert_allclose(logits, stored.logits, atol=1e-4)
    assert np.mean(run_onnx(exported / "model_int8.onnx", values).argmax(1) == labels) > 0.9


def test_the_image_processor_is_exported_too(exported):
    from PIL import Image
    from transformers import AutoImageProcessor

    about, processor = (
        json.loads((exported / "preprocessing.json").read_text()),
        AutoImageProcessor.from_pretrained(exported),
    )
    pixels = digits_test()[0][:3]
    values = processor([Image.fromarray(image) for image in pixels], return_tensors="np")["pixel_values"][:, :1]
    np.testing.assert_allclose(values, (pixels[:, None] / 255 - about["mean"][0]) / about["std"][0], atol=1e-5)


ALSO_ELSEWHERE = ("mlp", "convnet", "timm/test_resnet", "vit")  # `exported` is a convnet


@pytest.mark.parametrize(
    "folder",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ALSO_ELSEWHERE else []) for name in FAMILIES],
    indirect=True,
)
def test_every_family_in_every_format(folder, tmp_path):
    check_all_formats(folder, tmp_path)


def test_a_recurrent_network_in_every_format(rnn, tmp_path, capfd):
    check_all_formats(rnn, tmp_path)
    out, err = capfd.readouterr()
    assert "Warning" not in out + err and "torch.onnx" not in out + err and "Traceback" not in out + err
    table = [line.split()[0] for line in out.splitlines() if line.endswith("%")]
    assert table == ["pytorch", *FILES]


def check_all_formats(model_folder, tmp_path):
    """Any batch size gives PyTorch's logits, from the files alone."""
    from ftkit.models.classifier import Classifier

    classifier = Classifier.load(str(model_folder))
    model = classifier.model.eval()
    counts = {"train": 24, "validation": 2, "test": 15}
    folders = {f"{split}/{name}": count for split, count in counts.items() for name in classifier.task.names}
    data = noise_images(tmp_path / "noise", folders, size=(20, 24))
    export(
        "--model",
        model_folder,
        "--format",
        "all",
        "--output_dir",
        tmp_path / "out",
        "--max_images",
        20,
        "--data_dir",
        data,
    )
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    shape = json.loads((tmp_path / "out" / "preprocessing.json").read_text())["input"]["shape"][1:]
    assert (record["n"], record["calibration_images"]) == (20, 48)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for count in (1, 2, 5, 33):
        values = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = model(pixel_values=values).logits
            torch.testing.assert_close(program(values), expected, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(run_onnx(tmp_path / "out" / "model.onnx", values), expected, atol=1e-4, rtol=1e-4)
        assert run_onnx(tmp_path / "out" / "model_int8.onnx", values).shape == (count, 2)


def test_adapters_are_merged_into_the_weights(convnet, tmp_path):
    options = ["--method", "lora", "--num_train_epochs", 2, "--learning_rate", 0.01, "--max_train_samples", 100]
    run = finetune(tmp_path / "run", "--model", convnet, *DIGITS, *options)
    export("--model", run, "--format", "torch_export")
    rows = json.loads((run / "export" / "export.json").read_text())["formats"]
    stored = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert rows["torch_export"]["accuracy"] == pytest.approx(stored["accuracy"])
    program = torch.export.load(run / "export" / "model.pt2")
    assert not any("lora" in name for name in program.state_dict)


def test_a_timm_model_keeps_its_image_processor(tmp_path):
    from PIL import Image
    from transformers import AutoImageProcessor

    from ftkit.config import ModelArguments
    from ftkit.data.pixels.images import ImageInfo
    from ftkit.models.classifier import Classifier
    from ftkit.tasks import SingleLabel

    args = ModelArguments(model="timm/test_resnet", image_size=[16])
    classifier = Classifier.build(args, SingleLabel(["0", "1"]), ImageInfo((8, 8), 1), pretrained=False)
    classifier.save(tmp_path / "model")
    export("--model", tmp_path / "model", "--format", "torch_export", "--max_images", 5, *DIGITS)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    beside = AutoImageProcessor.from_pretrained(tmp_path / "model" / "export")
    values = [given(image, return_tensors="pt")["pixel_values"] for given in (classifier.processor, beside)]
    torch.testing.assert_close(*values)
    about = json.loads((tmp_path / "model" / "export" / "preprocessing.json").read_text())
    assert about["input"]["shape"] == ["batch", 3, 16, 16] and about["channels"] == ["red", "green", "blue"]
    assert about["image_processor"]["data_config"]["input_size"] == [3, 16, 16]


def test_calibration_sees_training_images_only(digits_run, tmp_path, monkeypatch):
    from ftkit.config import DataArguments
    from ftkit.data.sources.load import load_data
    from ftkit.export import formats

    seen, write = [], formats.write

    def spy(name, program, path, calibration):
        seen.extend(calibration)
        write(name, program, path, iter(seen))

    monkeypatch.setattr(formats, "write", spy)
    export("--model", digits_run, "--format", "int8", "--output_dir", tmp_path / "out")
    assert left_in(tmp_path / "out")[:2] == ["export.json", "model_int8.onnx"]  # and not what it was made from
    about = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    pixels = ((torch.cat(seen) * about["std"][0] + about["mean"][0]) * 255).round().byte().numpy()
    train = {np.asarray(image).tobytes() for image in load_data(DataArguments(dataset="digits"))["train"]["image"]}
    assert len(pixels) == 256 and len({image.tobytes() for image in pixels}) > 250
    assert all(image.tobytes() in train for image in pixels)


def test_a_pt2_file_holds_no_pickle(exported, monkeypatch):
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        for member in archive.infolist():
            content = archive.read(member)  # weights may begin with any byte
            assert not content.startswith(b"PK\x03\x04"), member.filename
            assert not (re.match(rb"\x80[\x02-\x05]", content) and content.endswith(b".")), member.filename

    def fail(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, fail)
    torch.export.load(exported / "model.pt2")


def test_the_files_contain_no_paths_of_this_machine(exported):
    for name in FILES.values():
        content = (exported / name).read_bytes()
        if name.endswith(".pt2"):
            with zipfile.ZipFile(exported / name) as archive:
                content = b"".join(archive.read(member) for member in archive.infolist())
        assert b"site-packages" not in content and b"modeling_convnet.py" not in content


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_wrong_graph_is_refused_and_leaves_no_files(convnet, tmp_path, monkeypatch, refused, name):
    from ftkit.export import formats

    capture = formats.capture

    def capture_another(model, pixel_values):
        model = copy.deepcopy(model)
        model.model.classifier.bias.data += 0.01
        return capture(model, pixel_values)

    monkeypatch.setattr(formats, "capture", capture_another)
    with refused(name, "other logits than PyTorch", "by 0.01 on a batch of 1", "nothing was kept"):
        export("--model", convnet, "--format", name, "--output_dir", tmp_path / "out" / "export", *DIGITS)
    assert left_in(tmp_path / "out") == []


def test_a_fixed_batch_is_refused(mlp, tmp_path, monkeypatch, refused):
    from ftkit.export import formats

    def capture_fixed(model, pixel_values):
        return torch.export.export(model, (pixel_values,))

    monkeypatch.setattr(formats, "capture", capture_fixed)
    with refused("onnx", "fails on a batch of 1"):
        export("--model", mlp, "--format", "onnx", "--output_dir", tmp_path / "out", *DIGITS)
    assert left_in(tmp_path) == []


def test_a_model_that_cannot_be_exported_is_one_message(mlp, tmp_path, monkeypatch, refused, capfd):
    from ftkit.models.modeling_mlp import MLPForImageClassification

    def forward(self, pixel_values, **kwargs):
        hidden = pixel_values if pixel_values.sum() > 0 else -pixel_values
        return SimpleNamespace(logits=self.classifier(self.layers(hidden.flatten(1))))

    monkeypatch.setattr(MLPForImageClassification, "forward", forward)
    with refused("torch.export cannot export it", "data-dependent") as caught:
        export("--model", mlp, "--format", "onnx", "--output_dir", tmp_path / "out", *DIGITS)
    assert len(str(caught.value)) < 500 and left_in(tmp_path) == []
    assert "Traceback" not in "".join(capfd.readouterr())


def test_an_export_is_replaced_only_on_request(mlp, tmp_path, refused):
    words = ["--model", mlp, "--format", "torch_export", "--output_dir", tmp_path / "out", *DIGITS]
    export(*words)
    (tmp_path / "out" / "old").touch()
    with refused(tmp_path / "out", "holds an export", "--overwrite true"):
        export(*words)
    assert "old" in left_in(tmp_path / "out")
    export(*words, "--overwrite", "true")
    assert "old" not in left_in(tmp_path / "out") and left_in(tmp_path) == ["out"]


def test_another_folder_is_never_replaced(mlp, tmp_path, refused):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    words = ["--model", mlp, "--format", "onnx", "--output_dir", tmp_path / "thesis", "--overwrite", "true", *DIGITS]
    with refused(tmp_path / "thesis", "holds no export"):
        export(*words)
    assert left_in(tmp_path / "thesis") == ["chapter"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onxx"], ["'onxx' is not one of onnx, torch_export, int8, all", "did you mean 'onnx'"]),
        ([], ["--format is missing", "torch_export"]),
        (["--format", "onnx", "--max_image", "3"], ["--max_image: there is no such option", "'max_images'"]),
        (["--format", "onnx", "--max_images", "0"], ["--max_images", "'0' is not a positive integer"]),
        (["--format", "onnx", "--repeats", "x"], ["--repeats", "'x' is not a positive integer"]),
        (["--format", "onnx"], ["dataset and data_dir are both missing"]),
        (
            ["--format", "onnx", "--dataset", "digits"],
            ["digits has classes that the model does not know", "'2' (177 images)"],
        ),
    ],
)
def test_an_invalid_argument_of_an_export_is_named(mlp, refused, words, said):
    with refused(*said):
        load_recipe_script("export").main(["--model", str(mlp), *words])


def test_missing_packages_are_named(mlp, refused, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with refused("--format int8 needs onnxscript", "pip install -e '.[export]'"):
        export("--model", mlp, "--format", "int8", *DIGITS)


def test_formats_are_read_as_they_are_written():
    parse = load_recipe_script("export").parse_arguments
    for words in (
        ["--format", "int8", "onnx"],
        ["--format", "onnx", "--format", "int8"],
        ["--format=onnx", "--format=int8"],
    ):
        assert parse([*words, "--model", "m", "--classes", "a", "b"]).format == ["onnx", "int8"]
    assert parse(["--format", "all"]).format == list(FILES)


def test_a_run_is_exported_into_its_folder(tmp_path):
    from ftkit.export.checks import default_folder as default

    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    assert default(str(run / "model")) == run / "model" / "export"
    (run / "config.yaml").touch()
    assert default(str(run)) == default(str(run / "model")) == run / "export"
    assert str(default("timm/resnet18.a1_in1k")) == "runs/timm-resnet18.a1_in1k-export"
