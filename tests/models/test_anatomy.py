"""Heads and layer groups of vision models, and models that are refused."""

import pytest
import torch
import transformers as T
from torch import nn

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.methods.trainable import trained_parameters
from ftkit.models.anatomy import draw_head, find_head, layer_groups, name_head
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
    ((head, module),) = find_head(model).items()
    assert list(groups)[-1] == head and module.out_features == 3
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


def test_a_model_of_several_heads_has_them_in_one_group():
    model = T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**_VIT))
    assert [*find_head(model)] == ["cls_classifier", "distillation_classifier"]
    groups = layer_groups(model)
    assert groups["cls_classifier+distillation_classifier"] == [
        f"{name}.{kind}" for name in find_head(model) for kind in ("weight", "bias")
    ]
    logits = model(torch.randn(2, 3, 16, 16)).logits
    logits.sum().backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in find_head(model).values())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("levit_128s", ["head.linear", "head_dist.linear"]),
        ("crossvit_tiny_240", ["head.0", "head.1"]),
        ("dla34", ["fc"]),
        ("mobileone_s0", ["head.fc"]),
    ],
)
def test_heads_of_timm_are_found_whatever_they_are(name, head):
    args, task = ModelArguments(model=f"timm/{name}"), SingleLabel(["a", "b"])
    model = Classifier.build(args, task, ImageInfo(None, 3), pretrained=False).model
    assert [place.removeprefix("timm_model.") for place in find_head(model)] == head


class Squeezed(T.PreTrainedModel):
    """A network whose head is a convolution of its own name, before the pooling."""

    config_class, main_input_name = T.ResNetConfig, "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.body, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, config.num_labels, 1)
        self.post_init()


def test_a_convolution_is_a_head():
    model = Squeezed(T.ResNetConfig(num_labels=3))
    assert find_head(model) == {"last": model.last}
    before = model.last.weight.clone()
    draw_head(model)
    assert not torch.equal(model.last.weight, before)


def test_finding_the_head_draws_no_random_numbers():
    model = Squeezed(T.ResNetConfig(num_labels=3))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    find_head(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "named", "full"),
    [("timm/test_vit", ["norm", "head"], ["timm_model.norm", "timm_model.head"]),
     ("convnet", ["classifier", "stages.2"], ["stages.2", "classifier"])],
)  # fmt: skip
def test_named_modules_are_the_head_of_the_saved_model_too(tmp_path, name, named, full):
    args = ModelArguments(model=name, head=named, image_size=[32])
    built = Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((32, 32), 3), pretrained=False)
    assert [*find_head(built.model)] == full
    built.save(tmp_path)
    for model in (
        Classifier.load(str(tmp_path)).model,
        Classifier.build(ModelArguments(str(tmp_path)), SingleLabel(["x", "y", "z"]), ImageInfo(None, 3), True).model,
    ):
        assert [*find_head(model)] == full
        assert [*layer_groups(model)][-1] == "+".join(full)


def test_a_head_that_leaves_out_the_logits_is_refused(refused):
    with refused("head: norm leaves out timm_model.head", "name it too") as refusal:
        name_head(Classifier.build(ModelArguments(model="timm/test_vit", image_size=[32]), SingleLabel(["a", "b"]),
                                   ImageInfo((32, 32), 3), False).model, ["norm"])  # fmt: skip
    assert refusal.value.fix == {"head": ["norm", "timm_model.head"]}
    with refused("head: the model has no module 'clasifier'", "'classifier'"):
        name_head(T.ViTForImageClassification(T.ViTConfig(**_VIT)), ["clasifier"])


def test_a_missing_head_is_an_error(refused):
    model = T.ViTForImageClassification(T.ViTConfig(**_VIT))
    model.classifier = nn.Identity()
    with refused("no module of it changes with num_labels of its config (3)", "set head"):
        layer_groups(model)


def test_a_model_that_takes_no_images_is_refused(refused):
    config = T.ImageGPTConfig(n_layer=1, n_head=1, n_embd=8, n_positions=16, vocab_size=9, num_labels=3)
    with refused("ImageGPTForImageClassification takes input_ids", "no pixel_values"):
        Classifier(T.ImageGPTForImageClassification(config), None)
