"""Trained models take the other sizes and channels that their library can adapt them to; the rest is refused."""

import numpy as np
import pytest
import timm
import torch
import transformers as T
from PIL import Image
from timm.layers import resample_abs_pos_embed
from transformers import pipeline

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

ABC = SingleLabel(["a", "b", "c"])
PHOTOS = ImageInfo(None, 3)
SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "num_labels": 5}  # fmt: skip
SQUARE = T.ViTImageProcessor(size={"height": 32, "width": 32})
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
CLIP = {key: value for key, value in SMALL.items() if key != "num_labels"}

# Models of transformers, by how they take another size: positions are resampled, or the network takes any.
RESAMPLED = {
    "vit": (T.ViTForImageClassification, T.ViTConfig(**SMALL)),
    "deit": (T.DeiTForImageClassification, T.DeiTConfig(**SMALL)),
    "clip": (T.CLIPForImageClassification, T.CLIPConfig(vision_config=CLIP, num_labels=5)),
    "swin": (T.SwinForImageClassification, T.SwinConfig(**SWIN, use_absolute_embeddings=True, num_labels=5)),
    "hiera": (
        T.HieraForImageClassification,
        T.HieraConfig(image_size=[32, 32], embed_dim=16, depths=[1, 1], num_heads=[1, 2], masked_unit_size=[2, 2],
                      num_query_pool=1, masked_unit_attention=[True, False], num_labels=5),
    ),
}  # fmt: skip
ANY_SIZE = {
    "beit": (T.BeitForImageClassification, T.BeitConfig(**SMALL, use_relative_position_bias=True)),
    "dinov2": (T.Dinov2ForImageClassification, T.Dinov2Config(**SMALL)),
    "swinv2": (T.Swinv2ForImageClassification, T.Swinv2Config(**SWIN, num_labels=5)),
    "resnet": (
        T.ResNetForImageClassification, T.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=5)
    ),
}  # fmt: skip


def saved(folder, kind, processor=SQUARE):
    build, config = (RESAMPLED | ANY_SIZE)[kind]
    torch.manual_seed(0)
    build(config).save_pretrained(folder / kind)
    processor.save_pretrained(folder / kind)
    return folder / kind


def saved_timm(folder, name="test_vit", **options):
    args = ModelArguments(model=f"timm/{name}", **options)
    torch.manual_seed(0)
    classifier = Classifier.build(args, SingleLabel(list("abcde")), PHOTOS, pretrained=False)
    classifier.save(folder / name)
    return folder / name


def built(folder, task=ABC, **options):
    return Classifier.build(ModelArguments(model=str(folder), **options), task, PHOTOS, pretrained=True)


def logits_of(classifier, image):
    pixels = torch.from_numpy(np.ascontiguousarray(classifier.geometry([image])))
    with torch.no_grad():
        return classifier.model.eval()(pixel_values=classifier.normalize(pixels)).logits[0]


def assert_saved_for_pipelines(classifier, folder):
    """A plain `pipeline` of the saved model gives the same logits, from a photo of another shape."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    classifier.save(folder)
    classify = pipeline("image-classification", str(folder), function_to_apply="none", top_k=9, device=-1)
    scores = {answer["label"]: answer["score"] for answer in classify(image)}
    logits = logits_of(classifier, image)
    torch.testing.assert_close(torch.tensor([scores[name] for name in "abc"]), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits_of(Classifier.load(str(folder)), image), logits)


@pytest.mark.parametrize("kind", [*RESAMPLED, *ANY_SIZE])
@pytest.mark.parametrize("size", [[48], [16, 32]], ids=str)
def test_transformers_models_take_another_size_as_they_do_themselves(tmp_path, kind, size, refused):
    folder = saved(tmp_path, kind)
    if kind == "clip" and len(size) == 2:
        with refused("cannot be built with {'image_size': [16, 32]}", "leave it out"):
            built(folder, image_size=size)
        return
    classifier = built(folder, image_size=size)
    assert classifier.size == (size[0], size[-1])
    own = T.AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, size[0], size[-1], generator=torch.Generator().manual_seed(0))
    options = {"interpolate_pos_encoding": True} if kind in RESAMPLED else {}
    if kind != "hiera":  # which can compute positions for another size, but not use them
        with torch.no_grad():
            expected = own(pixel_values=pixels, output_hidden_states=True, **options).hidden_states[-1]
            given = classifier.model.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(given, expected)
    assert_saved_for_pipelines(classifier, tmp_path / "again")


def test_timm_resamples_its_own_models(tmp_path):
    folder = saved_timm(tmp_path, image_size=[32, 64])
    weights = Classifier.load(str(folder)).model.state_dict()
    for size in ([64, 32], [48], [32, 64]):  # 64 x 32 has as many patches as 32 x 64, in another grid
        classifier = built(folder, image_size=size)
        found = classifier.model.state_dict()
        name = "timm_model.pos_embed"
        expected = resample_abs_pos_embed(
            weights[name], [size[0] // 16, size[-1] // 16], old_size=[2, 4], num_prefix_tokens=0
        ) if weights[name].shape[1] == 8 else None  # fmt: skip
        assert expected is None or torch.equal(found[name], expected)
        assert all(torch.equal(found[n], weights[n]) for n in weights if n != name and "head" not in n)
        assert_saved_for_pipelines(classifier, tmp_path / "again")


def test_only_square_positions_are_resampled_by_transformers(tmp_path, refused):
    config = T.ViTConfig(**SMALL | {"image_size": [16, 64]})  # 2 x 8 patches, which look like 4 x 4
    T.ViTForImageClassification(config).save_pretrained(tmp_path / "wide")
    T.ViTImageProcessor(size={"height": 16, "width": 64}).save_pretrained(tmp_path / "wide")
    assert built(tmp_path / "wide").size == (16, 64)
    for size in ([32], [64, 16], [48]):
        with refused("position_embeddings (1, 17, 16)", "cannot be resampled"):
            built(tmp_path / "wide", image_size=size)


@pytest.mark.parametrize("given", [{"image_size": [16]}, {"model_args": {"image_size": 16}}], ids=str)
def test_the_processor_follows(tmp_path, given):
    processor = T.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32)
    classifier = built(saved(tmp_path, "vit", processor), **given)
    assert classifier.size == (16, 16) and classifier.processor.size["shortest_edge"] == 20
    assert classifier.model.config.image_size == 16


def test_channels_are_summed_or_repeated(tmp_path, caplog):
    grey = torch.rand(2, 1, 32, 32)
    for folder, key in [(saved(tmp_path, "vit"), "num_channels"), (saved_timm(tmp_path, image_size=[32]), "in_chans")]:
        own = Classifier.load(str(folder))
        one = built(folder, SingleLabel(list(own.task.names)), model_args={key: 1})
        assert one.channels == 1 and "a plain pipeline, which feeds RGB, cannot run it" in caplog.text
        with torch.no_grad():
            expected = own.model.eval()(pixel_values=grey.expand(-1, 3, -1, -1)).logits
            torch.testing.assert_close(one.model.eval()(pixel_values=grey).logits, expected)
        one.save(tmp_path / "one")
        three = built(tmp_path / "one", SingleLabel(list(own.task.names)), model_args={key: 3})
        with torch.no_grad():
            logits = three.model.eval()(pixel_values=grey.expand(-1, 3, -1, -1)).logits
            torch.testing.assert_close(logits, expected)
        assert len({round(float(value), 4) for value in one.normalize.scale.flatten()}) == 1


@pytest.mark.parametrize(
    ("model_args", "named"),
    [
        ({"patch_size": 8}, None),  # timm resamples patches
        ({"depth": 8}, "blocks.6.attn.proj.bias (missing)"),
        ({"depth": 2}, "blocks.2.attn.proj.bias (64,)"),
        ({"embed_dim": 96}, "pos_embed"),
        ({"mlp_ratio": 2}, "blocks.0.mlp.fc1.weight"),
        ({"reg_tokens": 2}, "reg_token (missing)"),
        ({"drop_path_rate": 0.1}, None),
    ],
    ids=str,
)
def test_arguments_that_change_trained_tensors_are_followed_or_refused(tmp_path, refused, model_args, named):
    folder = saved_timm(tmp_path, image_size=[32])
    if named is None:
        classifier = built(folder, model_args=model_args)
        assert classifier.model.config.model_args.items() >= model_args.items()
        assert_saved_for_pipelines(classifier, tmp_path / "again")
    else:
        with refused(named, "cannot be resampled", "leave out model_args"):
            built(folder, model_args=model_args)


def test_positions_that_timm_does_not_resample_on_loading(tmp_path, refused):
    small = {"embed_dim": 16, "depth": 1, "depth_token_only": 1, "num_heads": 2}
    folder = saved_timm(tmp_path, "cait_xxs24_224", image_size=[64], model_args=small)
    before = Classifier.load(str(folder)).model.state_dict()["timm_model.pos_embed"]
    classifier = built(folder, image_size=[96])
    found = classifier.model.state_dict()["timm_model.pos_embed"]
    assert torch.equal(found, resample_abs_pos_embed(before, [6, 6], num_prefix_tokens=0))
    assert_saved_for_pipelines(classifier, tmp_path / "again")
    for size in ([32, 128], [32, 64]):  # the first has as many patches, in another grid
        with refused("timm_model.pos_embed (1, 16, 16)", "leave out image_size"):
            built(folder, image_size=size)


@pytest.mark.parametrize("name", ["levit_128s", "mixer_s32_224"])
def test_an_architecture_with_one_size_is_refused(tmp_path, refused, name):
    folder = saved_timm(tmp_path, name, image_size=[64])
    with refused("cannot be resampled", "leave out image_size"):
        built(folder, image_size=[96])


def test_weights_of_a_file_are_resampled_too(tmp_path):
    state = {
        name.removeprefix("timm_model."): tensor
        for name, tensor in Classifier.load(str(saved_timm(tmp_path, image_size=[160]))).model.state_dict().items()
    }
    torch.save(state, tmp_path / "net.pth")
    args = ModelArguments(model=str(tmp_path / "net.pth"), architecture="timm/test_vit", image_size=[64])
    classifier = Classifier.build(args, ABC, PHOTOS, pretrained=True)
    assert classifier.size == (64, 64)
    found = classifier.model.state_dict()["timm_model.pos_embed"]
    tokens = state["pos_embed"].shape[1] - 100
    torch.testing.assert_close(found, resample_abs_pos_embed(state["pos_embed"], [4, 4], num_prefix_tokens=tokens))


def test_weights_of_a_file_follow_the_arguments_of_their_architecture(tmp_path, refused):
    """As those of a saved model do: the first layer is summed for grey images."""
    network = timm.create_model("test_resnet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "net.pth")

    def build(**model_args):
        args = ModelArguments(str(tmp_path / "net.pth"), architecture="timm/test_resnet", model_args=model_args)
        return Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((32, 32), 1), pretrained=True)

    grey = build(in_chans=1)
    assert grey.channels == 1
    first = grey.model.state_dict()["timm_model.conv1.0.weight"]
    torch.testing.assert_close(first, network.conv1[0].weight.sum(1, keepdim=True))
    with refused("cannot be resampled", "leave out model_args"):
        build(channels=[8, 8, 8, 8])
