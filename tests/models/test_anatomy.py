"""Heads and layer groups of transformers' vision models, and what is refused."""

import pytest
import transformers as T
from torch import nn

from ftkit.errors import UserError
from ftkit.models.anatomy import find_head, layer_groups

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


def test_two_heads_are_named():
    model = T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**_VIT))
    with pytest.raises(UserError, match="cls_classifier, distillation_classifier"):
        find_head(model)


def test_no_head_is_said():
    model = T.ViTForImageClassification(T.ViTConfig(**_VIT))
    model.classifier = nn.Identity()
    with pytest.raises(UserError, match="linear layers with 3 outputs: none"):
        layer_groups(model)
