"""Models by name: transformers' and timm's from a folder, heads by class name, and what is refused."""

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError
from ftkit.models.anatomy import find_head
from ftkit.models.build import build_model, class_names, load_model, model_channels, save_model

GREY, COLOUR = ImageInfo((16, 16), 1), ImageInfo((16, 16), 3)
ABC = ["a", "b", "c"]


def named(names):
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }


@pytest.fixture(scope="module", params=["vit", "convnext", "timm", "convnet"])
def folder(request, tmp_path_factory):
    """A small model for the classes a, b, c, saved with its image processor."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "vit":
        config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, **named(ABC))  # fmt: skip
        model, processor = ViTForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16})
    elif request.param == "convnext":
        config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], **named(ABC))
        model, processor = ConvNextForImageClassification(config), ConvNextImageProcessor(size={"shortest_edge": 32})
    else:
        name = {"timm": "timm/test_resnet", "convnet": "convnet"}[request.param]
        model, processor = build_model(ModelArguments(model=name), ABC, COLOUR, pretrained=False)
    save_model(model, processor, path)
    return path


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


@pytest.mark.parametrize("names", [ABC, ["c", "a", "b"]], ids=["same order", "another order"])
def test_the_same_classes_keep_their_logits_by_name(folder, names):
    images = torch.randn(4, 3, 32 if "convnext" in str(folder) else 16, 32 if "convnext" in str(folder) else 16)
    saved = AutoModelForImageClassification.from_pretrained(folder)
    model, _ = build_model(ModelArguments(model=str(folder)), names, COLOUR, pretrained=True)
    assert class_names(model) == names
    expected = logits(saved, images)[:, [ABC.index(name) for name in names]]
    torch.testing.assert_close(logits(model, images), expected)


@pytest.mark.parametrize("names", [["x", "y", "z"], ["a", "b"], ["a", "b", "c", "d"]], ids=len)
def test_other_classes_get_a_new_head_on_the_same_body(folder, names):
    saved = AutoModelForImageClassification.from_pretrained(folder)
    model, _ = build_model(ModelArguments(model=str(folder)), names, COLOUR, pretrained=True)
    head, module = find_head(model)
    assert module.out_features == len(names) and class_names(model) == names
    for name, parameter in model.named_parameters():
        if not name.startswith(head):
            torch.testing.assert_close(parameter, saved.get_parameter(name))
    old = find_head(saved)[1].weight
    assert module.weight.shape != old.shape or not torch.equal(module.weight, old)


def test_a_new_head_survives_saving(folder, tmp_path):
    model, processor = build_model(ModelArguments(model=str(folder)), ["ü", "1", "10"], COLOUR, pretrained=True)
    save_model(model, processor, tmp_path)
    again, _ = load_model(str(tmp_path))
    assert class_names(again) == ["ü", "1", "10"]
    torch.testing.assert_close(find_head(again)[1].weight, find_head(model)[1].weight)


def test_from_scratch_takes_only_the_architecture(folder):
    saved = AutoModelForImageClassification.from_pretrained(folder)
    model, _ = build_model(ModelArguments(model=str(folder)), ABC, COLOUR, pretrained=False)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in saved.named_parameters()}
    assert not torch.equal(find_head(model)[1].weight, find_head(saved)[1].weight)


def test_sizes_and_channels_follow_the_data():
    mlp, processor = build_model(ModelArguments(model="mlp"), ABC, GREY, pretrained=False)
    assert model_channels(mlp) == 1 and processor.size == {"height": 16, "width": 16}
    wide, _ = build_model(ModelArguments(model="rnn", image_size=[8, 12]), ABC, COLOUR, pretrained=False)
    assert wide(torch.randn(2, 3, 8, 12)).logits.shape == (2, 3)
    vit, _ = build_model(ModelArguments(model="timm/test_vit", image_size=[32]), ABC, GREY, pretrained=False)
    assert model_channels(vit) == 3 and vit(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)


def test_dropout_by_one_name():
    args = {"dropout": 0.25, "image_size": [32]}
    mlp, _ = build_model(ModelArguments(model="mlp", **args), ABC, GREY, pretrained=False)
    timm, _ = build_model(ModelArguments(model="timm/test_resnet", **args), ABC, GREY, pretrained=False)
    assert mlp.config.dropout == 0.25
    assert timm.config.model_args["drop_rate"] == timm.timm_model.drop_rate == 0.25


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("{folder}", {"model_args": {"hidden_sise": 3}}, "hidden_sise"),
        ("{folder}", {"image_size": [99]}, "image_size: .* has its own"),
        ("{broken}", {}, "cannot be loaded"),
        ("timm/resnet18", {"model_args": {"no_such_option": 1}}, "timm cannot build resnet18"),
    ],
)
def test_what_is_refused(tmp_path, model, options, words):
    build, processor = build_model(ModelArguments(model="convnet"), ABC, COLOUR, pretrained=False)
    save_model(build, processor, tmp_path / "good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    places = {"folder": tmp_path / "good", "broken": tmp_path / "broken"}
    with pytest.raises(UserError, match=words):
        build_model(
            ModelArguments(model=model.format(**places), **options), ABC, COLOUR, pretrained="timm" not in model
        )
