"""Classifiers by name: transformers' and timm's models from a folder, heads by class name, refused models."""

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

from ftkit.config import DataArguments, ModelArguments
from ftkit.data.feeding.engine import load_images
from ftkit.data.pixels.images import ImageInfo
from ftkit.data.sources.load import load_data
from ftkit.errors import UserError
from ftkit.models.anatomy import find_head
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

GREY, COLOUR = ImageInfo((16, 16), 1), ImageInfo((16, 16), 3)
ABC = SingleLabel(["a", "b", "c"])


def named(names):
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }


@pytest.fixture(scope="module", params=["vit", "convnext", "timm", "convnet"])
def abc_model(request, tmp_path_factory):
    """A small model for the classes a, b, c, saved with its image processor."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "vit":
        config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, **named(ABC.names))  # fmt: skip
        model, processor = ViTForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16})
    elif request.param == "convnext":
        config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], **named(ABC.names))
        model, processor = ConvNextForImageClassification(config), ConvNextImageProcessor(size={"shortest_edge": 32})
    else:
        name = {"timm": "timm/test_resnet", "convnet": "convnet"}[request.param]
        built = Classifier.build(ModelArguments(model=name), ABC, COLOUR, pretrained=False)
        model, processor = built.model, built.processor
    Classifier(model, processor).save(path)
    return path


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


@pytest.mark.parametrize("names", [ABC.names, ["c", "a", "b"]], ids=["same order", "another order"])
def test_the_same_classes_keep_their_logits_by_name(abc_model, names):
    images = torch.randn(4, 3, 32 if "convnext" in str(abc_model) else 16, 32 if "convnext" in str(abc_model) else 16)
    saved = AutoModelForImageClassification.from_pretrained(abc_model)
    classifier = Classifier.build(ModelArguments(model=str(abc_model)), SingleLabel(names), COLOUR, pretrained=True)
    assert classifier.task.names == names
    expected = logits(saved, images)[:, [ABC.names.index(name) for name in names]]
    torch.testing.assert_close(logits(classifier.model, images), expected)


@pytest.mark.parametrize("names", [["x", "y", "z"], ["a", "b"], ["a", "b", "c", "d"]], ids=len)
def test_other_classes_get_a_new_head_on_the_same_body(abc_model, names):
    saved = AutoModelForImageClassification.from_pretrained(abc_model)
    classifier = Classifier.build(ModelArguments(model=str(abc_model)), SingleLabel(names), COLOUR, pretrained=True)
    ((head, module),) = find_head(classifier.model).items()
    assert module.out_features == len(names) and classifier.task.names == names
    for name, parameter in classifier.model.named_parameters():
        if not name.startswith(head):
            torch.testing.assert_close(parameter, saved.get_parameter(name))
    old = saved.get_submodule(head).weight
    assert module.weight.shape != old.shape or not torch.equal(module.weight, old)


def test_a_new_head_survives_saving(abc_model, tmp_path):
    classifier = Classifier.build(
        ModelArguments(model=str(abc_model)), SingleLabel(["ü", "1", "10"]), COLOUR, pretrained=True
    )
    classifier.save(tmp_path)
    again = Classifier.load(str(tmp_path))
    assert again.task.names == ["ü", "1", "10"]
    for name, head in find_head(classifier.model).items():
        torch.testing.assert_close(find_head(again.model)[name].weight, head.weight)


def test_from_scratch_takes_only_the_architecture(abc_model):
    saved = AutoModelForImageClassification.from_pretrained(abc_model)
    model = Classifier.build(ModelArguments(model=str(abc_model)), ABC, COLOUR, pretrained=False).model
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in saved.named_parameters()}
    ((name, head),) = find_head(model).items()
    assert not torch.equal(head.weight, saved.get_submodule(name).weight)


def test_sizes_and_channels_follow_the_data():
    mlp = Classifier.build(ModelArguments(model="mlp"), ABC, GREY, pretrained=False)
    assert mlp.channels == 1 and mlp.size == (16, 16)
    wide = Classifier.build(ModelArguments(model="rnn", image_size=[8, 12]), ABC, COLOUR, pretrained=False)
    assert wide.size == (8, 12) and wide.model(torch.randn(2, 3, 8, 12)).logits.shape == (2, 3)
    vit = Classifier.build(ModelArguments(model="timm/test_vit", image_size=[32]), ABC, GREY, pretrained=False)
    assert vit.channels == 3 and vit.model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)
    assert (vit.channels_of(GREY), vit.channels_of(COLOUR), mlp.channels_of(COLOUR)) == (1, 3, 1)


def test_dropout_has_one_name_for_every_model():
    args = {"dropout": 0.25, "image_size": [32]}
    mlp = Classifier.build(ModelArguments(model="mlp", **args), ABC, GREY, pretrained=False).model
    timm = Classifier.build(ModelArguments(model="timm/test_resnet", **args), ABC, GREY, pretrained=False).model
    assert mlp.config.dropout == 0.25
    assert timm.config.model_args["drop_rate"] == timm.timm_model.drop_rate == 0.25


@pytest.fixture
def digit_images():
    """Images of the digits, 8 x 8 pixels and grey, as a run trains on them."""
    dataset = load_data(DataArguments(dataset="digits"))
    built = Classifier.build(ModelArguments(model="mlp"), ABC, ImageInfo((8, 8), 1), pretrained=False)
    return load_images(dataset, built.processor, 1, DataArguments(dataset="digits"), seed=0)["train"]


@pytest.mark.parametrize(
    ("name", "model_args"),
    [("mlp", None), ("convnet", None), ("convnet", {"first_layer": "whitening"}), ("timm/test_resnet", None)],
)
def test_a_new_classifier_is_fitted_to_the_training_images_before_it_is_used(name, model_args, digit_images):
    args = ModelArguments(model=name, image_size=[8], model_args=model_args)
    classifier = Classifier.build(args, ABC, ImageInfo((8, 8), 1), pretrained=False)
    with pytest.raises(RuntimeError, match="fit"):
        _ = classifier.normalize
    before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    classifier.fit(digit_images)
    pixels = classifier.normalize(digit_images.pixels(torch.arange(len(digit_images))))
    assert abs(pixels.mean().item()) < 1e-3 and abs(pixels.std().item() - 1) < 1e-2
    fitted = {name for name, tensor in classifier.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert fitted == ({"stem.0.weight"} if model_args else set())


def test_a_normalisation_from_recipe_or_weights_is_not_measured(tmp_path, digit_images):
    args = ModelArguments(model="timm/test_resnet", image_size=[8], image_mean=[0.25], image_std=[0.5])
    given = Classifier.build(args, ABC, ImageInfo((8, 8), 1), pretrained=False)
    given.fit(digit_images)
    given.save(tmp_path)
    again = Classifier.build(ModelArguments(model=str(tmp_path)), ABC, ImageInfo((8, 8), 1), pretrained=True)
    for classifier in (given, again, Classifier.load(str(tmp_path))):
        values = classifier.normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))
        torch.testing.assert_close(values[:, 0].flatten(), torch.tensor([-0.5, 1.5]))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("{folder}", {"model_args": {"hidden_sise": 3}}, "hidden_sise"),
        ("{folder}", {"image_size": [99]}, "cannot be resampled: .*layers.0.0.weight .*leave out image_size"),
        ("{broken}", {}, "cannot be loaded"),
        ("timm/resnet18", {"model_args": {"no_such_option": 1}}, "timm cannot build resnet18"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(tmp_path, model, options, words):
    Classifier.build(ModelArguments(model="mlp"), ABC, COLOUR, pretrained=False).save(tmp_path / "good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    places = {"folder": tmp_path / "good", "broken": tmp_path / "broken"}
    with pytest.raises(UserError, match=words):
        Classifier.build(
            ModelArguments(model=model.format(**places), **options),
            ABC,
            COLOUR,
            pretrained="timm" not in model,
        )
