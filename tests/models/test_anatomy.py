"""Heads and layer groups of vision models, and models that are refused."""

import pytest
import transformers as T
from torch import nn

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError
from ftkit.methods.trainable import trained_parameters
from ftkit.models.anatomy import find_head, layer_groups
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

_VIT = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 3,
}
# The model, and its number of layer groups: embeddings, layers or stages, a last norm, the head.
MODELS = {
    "vit": (T.ViTForImageClassification, T.ViTConfig(**_VIT), 6),
    "deit": (T.DeiTForImageClassification, T.DeiTConfig(**_VIT), 6),
    "beit": (T.BeitForImageClassification, T.BeitConfig(**_VIT), 6),
    "swin": (
        T.SwinForImageClassification,
        T.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3),
        5,
    ),
    "convnext": (
        T.ConvNextForImageClassification,
        T.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_labels=3),
        7,
    ),
    "resnet": (
        T.ResNetForImageClassification,
        T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3),
        4,
    ),
    "dinov2": (
        T.Dinov2ForImageClassification,
        T.Dinov2Config(image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                       mlp_ratio=1, num_labels=3),
        6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layer_groups_go_from_input_to_head(name):
    kind, config, count = MODELS[name]
    model = kind(config)
    groups = layer_groups(model)
    assert len(groups) == count, list(groups)
    assert "embed" in next(iter(groups))
    assert list(groups)[-1] == find_head(model)[0] and find_head(model)[1].out_features == 3
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    order = [name for name, _ in model.named_parameters()]
    firsts = [min(map(order.index, names)) for names in groups.values()]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    "name",
    ["test_vit", "test_resnet", "efficientnet_b0", "convnext_atto", "densenet121", "poolformer_s12", "rdnet_tiny"],
)
def test_timm_groups_hold_every_parameter_and_are_named_after_their_modules(name):
    """Models that timm does not group, too; a group with a module's name is that module."""
    args = ModelArguments(model=f"timm/{name}", image_size=[64])
    model = Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((64, 64), 3), pretrained=False).model
    groups, modules = layer_groups(model), dict(model.named_modules())
    assert len(groups) > 5
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    for label, names in groups.items():
        if label in modules:
            assert {f"{label}.{inner}" for inner, _ in modules[label].named_parameters()} == set(names)


@pytest.mark.parametrize(
    ("name", "train", "least"), [("timm/efficientnet_b0_gn", "norm", 40_000), ("rnn", "bias", 200)]
)
def test_norms_and_biases_of_every_kind_are_found(name, train, least):
    model = Classifier.build(
        ModelArguments(model=name, image_size=[32]), SingleLabel(["a", "b"]), ImageInfo((32, 32), 1), False
    ).model
    groups = layer_groups(model)
    body = trained_parameters(model, groups, train) - trained_parameters(model, groups, "head")
    assert sum(model.get_parameter(name).numel() for name in body) >= least


def test_a_pretraining_mask_token_does_not_train():
    model = MODELS["dinov2"][0](MODELS["dinov2"][1])
    left = dict(model.named_parameters()).keys() - trained_parameters(model, layer_groups(model), "all")
    assert left == {"dinov2.embeddings.mask_token"}


def test_two_heads_are_an_error_that_names_them():
    model = T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**_VIT))
    with pytest.raises(UserError, match=r"cls_classifier \(Linear\), distillation_classifier \(Linear\)"):
        find_head(model)


def test_a_missing_head_is_an_error():
    model = T.ViTForImageClassification(T.ViTConfig(**_VIT))
    model.classifier = nn.Identity()
    with pytest.raises(UserError, match="modules with 3 outputs: none"):
        layer_groups(model)
