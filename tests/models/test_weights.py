"""Weights from elsewhere: a `state_dict` of a tutorial, of timm or of a wrapper; and refused files."""

import json
import logging
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support import finetune, train, weights
from torch import nn

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

QUICK = ["--max_train_samples", 60, "--num_train_epochs", 1, "--learning_rate", 0, "--method", "linear_probe"]
TUTORIAL = ["--architecture", "mlp", "--model_args", '{"hidden_sizes": [32, 16]}']


@pytest.fixture
def tutorial():
    """A network as in many tutorials, for images of 8 x 8 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10)
    )


def body(run):
    saved = load_file(run / "model" / "model.safetensors")
    return [saved[f"layers.{n}.0.{kind}"] for n in (0, 1) for kind in ("weight", "bias")]


@pytest.mark.parametrize("how", ["state_dict", "nested", "module"])
def test_weights_of_a_tutorial_fit_by_order(tutorial, tmp_path, how):
    """With a learning rate of 0, the layers before the head equal the file's, whose names differ."""
    path, state = tmp_path / "net.pth", tutorial.state_dict()
    torch.save({"state_dict": state, "nested": {"epoch": 3, "model_state_dict": state}, "module": tutorial}[how], path)
    run = train(tmp_path / "run", *QUICK, "--model", path, *TUTORIAL).folder
    expected = [value for name, value in tutorial.state_dict().items() if not name.startswith("6.")]
    assert all(torch.equal(a, b) for a, b in zip(body(run), expected, strict=True))


def test_weights_by_order_are_shown_in_three_lines_and_listed_in_the_runs_folder(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "ftkit")
    deep = {"hidden_sizes": [8] * 5}
    layers = [nn.Linear(64, 8), *(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 10)]
    torch.save(nn.Sequential(*layers).state_dict(), tmp_path / "net.pth")
    options = [*QUICK, "--model", tmp_path / "net.pth", "--architecture", "mlp", "--model_args", json.dumps(deep)]
    run = train(tmp_path / "run", *options).folder
    told = next(line for line in caplog.messages if "by their order" in line).splitlines()
    assert told[0].startswith("weights: no name fits; 10 tensors")
    assert told[1] == "  0.weight → layers.0.0.weight" and len(told) == 5
    assert told[4] == "  and 7 more, all in weights_in_order.txt in the run's folder"
    listed = (run / "weights_in_order.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 10 and listed[9] == "4.bias → layers.4.0.bias"
    caplog.clear()
    monkeypatch.setenv("FTKIT_DEBUG", "1")
    train(tmp_path / "again", *options)
    assert "4.bias → layers.4.0.bias" in caplog.text


SETS = {
    "a nested average": lambda state, other: {"state_dict": other, "state_dict_ema": state, "epoch": 3},
    "two models": lambda state, other: {"model": other, "model_ema": state, "optimizer": {"state": {}}},
    "a teacher and its student": lambda state, other: {"student": other, "teacher": state},
    "names before names": lambda state, _: {"state_dict": {f"net.encoder.{name}": v for name, v in state.items()}},
    "a count beside": lambda state, _: {"epoch": torch.tensor(3), "model": state},
}


@pytest.mark.parametrize("name", SETS)
def test_the_weights_in_files_of_training_scripts_are_found(tmp_path, caplog, name):
    caplog.set_level("INFO", "ftkit")
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    other = {name: value + 1 for name, value in state.items()}
    torch.save(SETS[name](state, other), tmp_path / "net.pth")
    args = ModelArguments(model=str(tmp_path / "net.pth"), architecture="timm/test_resnet", image_size=[32])
    built = Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((32, 32), 3), pretrained=True)
    found = built.model.timm_model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items() if not name.startswith("fc."))
    if "_ema" in str(SETS[name]({}, {})):
        assert "_ema' is used" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {n: v for n, v in state.items() if "layer4" not in n},
            ["does not fit", "tensors get no weights"],
        ),
        (lambda state: state | {"layer9.0.conv1.weight": torch.ones(1)}, ["layers that", "layer9.0.conv1.weight"]),
        (lambda state: state | {"bn1.weight": torch.full((32,), float("nan"))}, ["NaN", "bn1.weight"]),
        (lambda state: {n: (v * 99).to(torch.int8) for n, v in state.items()}, ["integers"]),
    ],
    ids=["short", "long", "NaN", "8 bits"],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, refused, change, words):
    torch.manual_seed(0)
    torch.save(change(timm.create_model("test_resnet", num_classes=7).state_dict()), tmp_path / "net.pth")
    args = ModelArguments(model=str(tmp_path / "net.pth"), architecture="timm/test_resnet", image_size=[32])
    with refused("net.pth", *words):
        Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((32, 32), 3), pretrained=True)


def test_timm_weights_fit_by_name_without_the_prefixes_of_wrappers(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()} | {"extra.weight": torch.ones(3)},
               tmp_path / "net.pth")  # fmt: skip
    run = train(tmp_path / "run", *QUICK, "--model", tmp_path / "net.pth", "--architecture", "timm/test_resnet",
                "--image_size", 32).folder  # fmt: skip
    saved = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(saved[f"timm_model.{name}"], value) for name, value in state.items() if "fc" not in name)
    assert saved["timm_model.fc.weight"].shape[0] == 10
    save_file(state, tmp_path / "net.safetensors")
    again = train(tmp_path / "again", "--config", run / "config.yaml", "--model", tmp_path / "net.safetensors")
    assert weights(again.folder) == weights(run)


@pytest.fixture
def built(tmp_path, caplog):
    """The classifier that a file of weights becomes, with more `ModelArguments`, and what is logged."""

    def built(architecture, state, channels=3, **options):
        torch.save(state, tmp_path / "net.pth")
        args = ModelArguments(model=str(tmp_path / "net.pth"), architecture=architecture, **options)
        with caplog.at_level(logging.INFO, logger="ftkit"):
            return Classifier.build(
                args, SingleLabel(["a", "b"]), ImageInfo((8, 8), channels), pretrained=True
            ), caplog.text

    return built


@pytest.mark.parametrize(
    ("architecture", "mean"),
    [("timm/test_resnet.r160_in1k", 0.5), ("timm/test_resnet", 0.5), ("timm/resnet18.a1_in1k", 0.485)],
)
def test_timm_weights_are_normalised_as_timm_does(built, architecture, mean):
    state = timm.create_model(architecture.removeprefix("timm/")).state_dict()
    classifier, said = built(architecture, state)
    preset = timm.get_pretrained_cfg(architecture.removeprefix("timm/"))
    saved = classifier.model.config.pretrained_cfg
    assert not classifier.needs_statistics and saved["mean"][0] == mean
    for key in ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"):
        assert list(np.ravel(saved[key])) == list(np.ravel(getattr(preset, key))), key
    assert "normalisation: mean" in said and architecture in said
    assert ("timm's default" in said) == ("." not in architecture)


def test_the_tag_decides_between_weights_of_one_architecture(built):
    """timm has weights of EfficientNet-B0 that were trained with another mean."""
    state = timm.create_model("tf_efficientnet_b0").state_dict()
    for tag, mean in (("in1k", 0.485), ("ap_in1k", 0.5)):
        classifier, _ = built(f"timm/tf_efficientnet_b0.{tag}", state, image_size=[32])
        saved = classifier.model.config.pretrained_cfg
        assert (saved["mean"][0], saved["input_size"]) == (mean, [3, 32, 32])
    _, said = built("timm/tf_efficientnet_b0", state)
    assert "name the tag of your weights if it is ap_in1k" in said


def test_a_tag_that_timm_does_not_know_is_refused_with_its_tags(built, refused):
    with refused("no weights 'nope' of test_resnet", "r160_in1k"):
        built("timm/test_resnet.nope", timm.create_model("test_resnet").state_dict())


def test_own_statistics_win_and_own_architectures_take_those_of_the_data(built, tutorial):
    state = timm.create_model("test_resnet").state_dict()
    classifier, _ = built("timm/test_resnet", state, image_mean=[0.1], image_std=[0.2])
    assert classifier.model.config.pretrained_cfg["mean"] == [0.1] * 3 and not classifier.needs_statistics
    classifier, said = built("mlp", tutorial.state_dict(), channels=1, model_args={"hidden_sizes": [32, 16]})
    assert classifier.needs_statistics and "of the training images, since" in said


def test_a_saved_model_as_architecture_gives_its_statistics(built, mlp):
    saved = Classifier.load(str(mlp))
    saved.processor.image_mean, saved.processor.image_std = [0.3] * 3, [0.6] * 3
    saved.save_processor(mlp.parent / "statistics")
    saved.model.config.save_pretrained(mlp.parent / "statistics")
    classifier, said = built(str(mlp.parent / "statistics"), saved.model.state_dict())
    assert (list(classifier.processor.image_mean), classifier.needs_statistics) == ([0.3] * 3, False)
    assert "normalisation: mean 0.3 0.3 0.3" in said


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)


class Attack:
    def __reduce__(self):
        return (print, ("run by unpickling",))


def test_a_file_that_would_run_code_is_refused(tmp_path, refused, capsys):
    torch.save(Net(), tmp_path / "net.pth")
    with refused("would run code from it", "Net", "torch.save(model.state_dict(), path)"):
        finetune(tmp_path / "run", *QUICK, "--model", tmp_path / "net.pth", *TUTORIAL)
    torch.save({"state_dict": Attack()}, tmp_path / "attack.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack()))
    for name in ("attack", "plain"):
        with refused(f"{name}.pth"):
            finetune(tmp_path / "run", *QUICK, "--model", tmp_path / f"{name}.pth", *TUTORIAL)
    assert "run by unpickling" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_keys_that_do_not_fit_are_listed(tutorial, tmp_path, refused):
    path = tmp_path / "net.pth"
    torch.save(tutorial.state_dict(), path)
    with refused("does not fit", "layers.1.0.weight (8, 32)", "6 keys of the file fit nowhere: 1.weight (32, 64)"):
        train(tmp_path / "run", *QUICK, "--model", path, "--architecture", "mlp", "--model_args",
              json.dumps({"hidden_sizes": [32, 8]}))  # fmt: skip


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"not a file of weights", TUTORIAL, ["cannot be read as a file of weights"]),
        (None, TUTORIAL, ["the file", "does not exist"]),
        ("weights", [], ["architecture is missing"]),
        ("weights", ["--architecture", "resnet81"], ["architecture: 'resnet81' is unknown"]),
        ("weights", [*TUTORIAL, "--method", "scratch"], ["starts from random weights"]),
        ("weights", [*TUTORIAL, "--method", "lora"], ["set it to true"]),
        ({}, TUTORIAL, ["holds no named weights"]),
    ],
    ids=str,
)
def test_unusable_weights_are_refused(tutorial, tmp_path, refused, content, options, words):
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(tutorial.state_dict() if content == "weights" else content, path)
    with refused(*words):
        train(tmp_path / "run", *QUICK, "--model", path, *options)


def test_an_architecture_belongs_to_a_file(tmp_path, refused):
    with refused("architecture: mlp goes with a file of weights, and model: convnet is not one"):
        train(tmp_path / "run", "--model", "convnet", "--architecture", "mlp")
