"""ftkit's own models: shapes, losses, initialisation, channels, and folders that load without ftkit."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from ftkit.models.channels import match_channels
from ftkit.models.checks import OWN_MODELS
from ftkit.models.modeling_convnet import GlobalMaxPool
from ftkit.models.own import CONFIGS, ConvNetConfig, ConvNetForImageClassification, MLPConfig, RNNConfig

SIZE = (10, 12)  # not square, so that a transposed image shows
LABELS = {0: "plane", 1: "car", 2: "bird", 3: "cat"}
SMALL = {
    "mlp": {"image_size": list(SIZE), "hidden_sizes": [16, 8]},
    "convnet": {"hidden_sizes": [4, 8], "depths": [0, 1]},
    "rnn": {"image_size": list(SIZE), "hidden_size": 8, "cell": "gru"},
}


def test_every_model_is_known_to_the_checks_and_tested_here():
    """`ftkit.models.checks` repeats the names, since it checks recipes before torch is loaded."""
    assert tuple(CONFIGS) == OWN_MODELS == tuple(SMALL)


@pytest.fixture(params=SMALL)
def kind(request):
    return request.param


def build(kind, seed=0, **changes):
    names = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
    torch.manual_seed(seed)
    return AutoModelForImageClassification.from_config(CONFIGS[kind](**{**names, **SMALL[kind], **changes})).eval()


def images(channels=1, n=5, size=SIZE):
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))


def test_forward_and_backward(kind):
    model = build(kind).train()
    labels = torch.tensor([0, 1, 2, 3, 0])
    config = model.config.to_dict()
    output = model(images(), labels=labels)
    assert output.logits.shape == (5, 4)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model(images()).loss is None
    assert model.config.to_dict() == config
    assert isinstance(model.classifier, nn.Linear)


def test_the_seed_determines_the_weights(kind):
    one, same, other = build(kind), build(kind), build(kind, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_weights_have_torchs_own_initialisation(kind):
    for module in build(kind).modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound
        if isinstance(module, nn.Linear):
            assert 0 < module.bias.abs().max() <= bound
        if isinstance(module, nn.RNNBase):
            assert all(0.8 < p.abs().max() * 8**0.5 <= 1 for p in module.parameters())


def test_a_grey_image_as_rgb_has_the_same_logits(kind):
    model, grey = build(kind), images()
    with torch.no_grad():
        torch.testing.assert_close(model(grey.expand(-1, 3, -1, -1)).logits, model(grey).logits)


def test_grey_image_in_an_rgb_model(kind):
    model, grey = build(kind, num_channels=3), images()
    with torch.no_grad():
        torch.testing.assert_close(model(grey).logits, model(grey.repeat(1, 3, 1, 1)).logits)


def test_channels_that_cannot_be_matched(kind):
    with pytest.raises(ValueError, match="4 channels.*num_channels=1"):
        build(kind)(images(channels=4))


def test_grey_is_the_luma_of_rec_601():
    rgb = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    assert match_channels(rgb, 1).item() == pytest.approx(0.299 + 5.87 + 11.4)


@pytest.mark.parametrize("kind", [kind for kind, fields in SMALL.items() if "image_size" in fields])
def test_another_image_size_is_an_error(kind):
    with pytest.raises(ValueError, match=r"\(12, 10\).*\(10, 12\)"):
        build(kind)(images(size=(12, 10)))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 33)])
def test_convnet_takes_any_size(size):
    torch.manual_seed(0)
    model = ConvNetForImageClassification(ConvNetConfig(num_labels=10))
    output = model(images(size=size), labels=torch.arange(5))
    output.loss.backward()
    assert output.logits.shape == (5, 10) and output.loss.isfinite()


FAST = {
    "num_channels": 3, "first_layer": "whitening", "residual": False, "downsampling": "max_pool", "pooling": "max",
    "norm_scale": False, "identity_init": True, "logit_scale": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (9, 33)])
def test_a_convnet_of_the_speedruns(size, tmp_path):
    model = build("convnet", hidden_sizes=[4, 8, 8], depths=[1, 1, 0], **FAST).train()
    pixels = images(3, size=size)
    model.fit_first_layer(pixels)
    output = model(pixels, labels=torch.tensor([0, 1, 2, 3, 0]))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not any("normalization.weight" in name for name, _ in model.named_parameters())
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixels).logits, model(pixels).logits, rtol=0, atol=0)


def test_whitened_patches_are_uncorrelated_and_of_variance_1():
    model = build("convnet", **FAST)
    pixels = images(3, n=400) @ torch.randn(12, 12, generator=torch.Generator().manual_seed(2)) + 0.7
    model.fit_first_layer(pixels)
    outputs = model.stem[0](pixels).transpose(0, 1).flatten(1)
    covariance = outputs[:12].double().cov()
    torch.testing.assert_close(covariance, torch.eye(12).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs[12:], -outputs[:12])


def test_convolutions_that_start_as_the_identity():
    model = build("convnet", **FAST)
    weight = model.stages[1][0].convolution.weight  # 4 channels to 8
    assert torch.equal(weight[:4], nn.init.dirac_(torch.empty_like(weight[:4])))
    assert not torch.equal(weight[4:], torch.zeros_like(weight[4:]))


def test_mlp_without_hidden_layers_is_softmax_regression():
    model = build("mlp", hidden_sizes=[])
    assert [name for name, _ in model.named_parameters()] == ["classifier.weight", "classifier.bias"]
    torch.testing.assert_close(model(images()).logits, model.classifier(images().flatten(1)))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnn_classifies_from_the_end_states(cell, bidirectional):
    model = build("rnn", cell=cell, bidirectional=bidirectional, num_layers=2)
    output, _ = model.rnn(images()[:, 0])  # one channel: the rows are the time steps
    ends = [output[:, -1, :8], output[:, 0, 8:]] if bidirectional else [output[:, -1]]
    torch.testing.assert_close(model(images()).logits, model.classifier(torch.cat(ends, dim=1)))


def test_auto_classes_know_the_models(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is type(model) and type(AutoModelForImageClassification.from_config(model.config)) is type(
        model
    )
    assert again.config.id2label == LABELS and again.config.label2id == {name: i for i, name in LABELS.items()}
    assert torch.equal(again(images()).logits, model(images()).logits)


def test_a_new_head_keeps_the_other_weights(kind, tmp_path):
    model = build(kind)
    for buffer in model.buffers():  # BatchNorm's statistics: not the initial values
        buffer.add_(2)
    model.save_pretrained(tmp_path)

    def load():
        torch.manual_seed(3)
        return AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)

    loaded = load()
    assert loaded.config.num_labels == 7 and loaded(images()).logits.shape == (5, 7)
    old, new, again = model.state_dict(), loaded.state_dict(), load().state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("classifier."))
    bound = loaded.classifier.in_features**-0.5
    assert 0.8 * bound < new["classifier.weight"].abs().max() <= bound
    assert 0 < new["classifier.bias"].abs().max() <= bound
    assert all(torch.equal(new[name], again[name]) for name in new)


LOAD_ELSEWHERE = """
import sys
sys.modules["ftkit"] = None  # importing ftkit now fails, even where it is installed
import torch
from transformers import AutoModelForImageClassification
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(torch.load(f"{folder}/images.pt")).logits
    torch.save({"logits": logits, "labels": model.config.id2label}, f"{folder}/output.pt")
"""


@pytest.mark.slow  # test_reload.py does it with runs
def test_saved_folders_load_without_ftkit(tmp_path):
    folders = [tmp_path / kind for kind in SMALL]
    for kind, folder in zip(SMALL, folders, strict=True):
        build(kind).save_pretrained(folder)
        torch.save(images(), folder / "images.pt")
        assert {path.name for path in folder.glob("*.py")} == {f"modeling_{kind}.py", "channels.py"}
    caches = {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "code")}
    environment = os.environ | caches | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", LOAD_ELSEWHERE, *map(str, folders)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    for kind, folder in zip(SMALL, folders, strict=True):
        output = torch.load(folder / "output.pt")
        assert output["labels"] == LABELS
        with torch.no_grad():
            torch.testing.assert_close(output["logits"], build(kind)(images()).logits)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (MLPConfig, {"image_size": 0}, "image_size=0 must be"),
        (MLPConfig, {"image_size": [28]}, r"image_size=\[28\] must be"),
        (MLPConfig, {"num_channels": -1}, "num_channels=-1 must be"),
        (MLPConfig, {"hidden_sizes": [512, 0]}, r"hidden_sizes=\[512, 0\] must be"),
        (MLPConfig, {"hidden_sizes": 512}, "hidden_sizes=512 must be a list"),
        (MLPConfig, {"activation": "rellu"}, "activation='rellu' is unknown; use one of .*relu"),
        (MLPConfig, {"dropout": 1.0}, r"dropout=1.0 must be a probability in \[0, 1\)"),
        (ConvNetConfig, {"num_channels": 0}, "num_channels=0 must be"),
        (ConvNetConfig, {"hidden_sizes": [8, 16], "depths": [1]}, "same length"),
        (ConvNetConfig, {"hidden_sizes": [], "depths": []}, "at least one stage"),
        (ConvNetConfig, {"depths": [0, -1, 1]}, r"depths=\[0, -1, 1\] must be"),
        (ConvNetConfig, {"activation": "gleu"}, "activation='gleu' is unknown; use one of .*gelu"),
        (ConvNetConfig, {"first_layer": "whitened"}, "first_layer='whitened' must be one of convolution, whitening"),
        (ConvNetConfig, {"norm_momentum": 0}, "norm_momentum=0 must be a share"),
        (ConvNetConfig, {"logit_scale": 0}, "logit_scale=0 must be a positive number"),
        (ConvNetConfig, {"dropout": -0.1}, "dropout=-0.1"),
        (RNNConfig, {"image_size": "28"}, "image_size='28' must be"),
        (RNNConfig, {"cell": "LTSM"}, "cell='LTSM' is unknown; use lstm"),
        (RNNConfig, {"cell": ["gru"]}, r"cell=\['gru'\] is unknown; use gru"),
        (RNNConfig, {"hidden_size": 0}, "hidden_size=0"),
        (RNNConfig, {"num_layers": 1.5}, "num_layers=1.5"),
        (RNNConfig, {"bidirectional": "no"}, "bidirectional='no' must be true or false"),
    ],
)
def test_an_invalid_value_is_an_error_with_a_fix(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7)])
def test_max_pooling_is_torchs_own_to_the_last_bit(size, layout):
    """Gradients too, even if several pixels share the maximum."""
    images = torch.randn(9, 16, *size, generator=torch.Generator().manual_seed(0)).relu().round()
    found = []
    for pool in (GlobalMaxPool(), nn.AdaptiveMaxPool2d(1)):
        given = images.to(memory_format=layout).clone(memory_format=torch.preserve_format).requires_grad_()
        pooled = pool(given)
        (pooled * torch.arange(144.0).view(9, 16, 1, 1)).sum().backward()
        found.append((pooled, given.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
