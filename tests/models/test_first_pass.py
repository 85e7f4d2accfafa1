"""Images that a model cannot take are refused before anything is decoded or written, and the advice works."""

import pytest
import torch
import transformers as T
from support import finetune, noise_images, train, weights

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError
from ftkit.models.classifier import Classifier
from ftkit.models.first_pass import why_not
from ftkit.tasks import SingleLabel

ABC = SingleLabel(["a", "b", "c"])


def checked(classifier, args, info, pretrained=False):
    pixels = torch.randint(0, 256, (2, classifier.channels_of(info), *classifier.size), dtype=torch.uint8)
    classifier.check(args, ABC, info, pretrained, pixels)


def found_for(name, size, **options):
    """The size that the message recommends; None if the model takes the images."""
    args = ModelArguments(model=name, **options)
    info = ImageInfo(size, 3)
    classifier = Classifier.build(args, ABC, info, pretrained=False)
    try:
        checked(classifier, args, info)
    except UserError as error:
        return error.fix["image_size"]
    return None


@pytest.mark.parametrize(
    ("name", "size", "smallest"),
    [
        ("timm/test_vit", (20, 20), 32),  # its patches are of 16 pixels: 4 would be cut off
        ("timm/test_vit", (8, 8), 16),
        ("timm/test_vit", (40, 70), [48, 80]),
        ("timm/test_vit", (16, 48), None),
        ("timm/convnext_atto", (20, 20), 32),
        ("timm/test_resnet", (8, 8), None),
        ("convnet", (8, 8), None),
        ("mlp", (3, 5), None),
    ],
)
def test_the_smallest_size_is_found_by_trying(name, size, smallest):
    assert found_for(name, size) == smallest


def test_a_size_that_only_some_sizes_above_satisfy():
    args = {"img_size": 100, "window_size": 4}  # Swin's windows are padded, and its patches of 4 pixels divide 100
    assert found_for("timm/swin_tiny_patch4_window7_224", None, model_args=args) is None
    assert found_for("timm/test_vit", None, model_args={"dynamic_img_size": True}, image_size=[40]) == 48


def test_pixels_that_do_not_reach_the_logits_are_counted(caplog):
    """Whatever cuts them off: a hook, patches that do not divide the image, or convolutions without padding."""
    model = timm_wrapped("test_resnet")
    model.timm_model.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :, :-2, 1:],))
    assert "cut off 2 rows and 1 columns of images of 64 x 64" in why_not(model, torch.randn(2, 3, 64, 64))
    valid = timm_wrapped("test_resnet")
    valid.timm_model.conv1[0].padding = (0, 0)  # of stride 2: the last row and column are left, as they always are
    with caplog.at_level("INFO"):
        assert why_not(valid, torch.randn(2, 3, 64, 64)) is None
    assert "ignores 1 rows and 1 columns of images of 64 x 64" in caplog.text
    vit = T.ViTForImageClassification(
        T.ViTConfig(image_size=30, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                    intermediate_size=8)
    )  # fmt: skip
    assert "cut off 6 rows and 6 columns of images of 30 x 30" in why_not(vit, torch.randn(2, 3, 30, 30))
    torch.nn.init.zeros_(vit.classifier.weight)  # the pixels count, though nothing depends on them yet
    assert "cut off 6 rows" in why_not(vit, torch.randn(2, 3, 30, 30))


def timm_wrapped(name):
    args = ModelArguments(model=f"timm/{name}", image_size=[32])
    return Classifier.build(args, ABC, ImageInfo(None, 3), pretrained=False).model


def test_the_pass_leaves_no_trace(tmp_path, monkeypatch):
    model = timm_wrapped("test_resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, mode = torch.get_rng_state(), model.training
    assert why_not(model, torch.randn(2, 3, 32, 32, generator=torch.Generator())) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training is mode
    options = ["--model", "timm/test_resnet", "--image_size", 16, "--dropout", 0.5, "--max_train_samples", 40,
               "--num_train_epochs", 1]  # fmt: skip
    one = train(tmp_path / "one", *options).folder
    monkeypatch.setattr(Classifier, "check", lambda *_: None)
    assert weights(one) == weights(train(tmp_path / "two", *options).folder)
    assert torch.equal(state, state)


def test_broken_weights_are_named(tmp_path, refused):
    model = timm_wrapped("test_resnet")
    with torch.no_grad():
        model.timm_model.conv1[0].weight[0, 0, 0, 0] = torch.nan
    with refused("1 of the", "conv1.0.weight", "NaN"):
        why_not(model, torch.randn(2, 3, 32, 32), "it")
    with torch.no_grad():
        model.timm_model.conv1[0].weight.fill_(1e38)
    with refused("not finite", "image_std"):
        why_not(model, torch.randn(2, 3, 32, 32), "it")


@pytest.fixture(scope="module")
def mismatched(tmp_path_factory):
    """A ViT for 32 x 32 pixels, whose image processor makes 48 x 48."""
    folder = tmp_path_factory.mktemp("mismatched") / "vit"
    config = T.ViTConfig(image_size=32, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8, num_labels=2)  # fmt: skip
    T.ViTForImageClassification(config).save_pretrained(folder)
    T.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


def test_model_and_processor_agree_or_it_is_an_error(mismatched, tmp_path, refused):
    data = noise_images(tmp_path / "data", {"ant": 10, "bee": 10}, size=(20, 20))
    command = ["--data_dir", data, "--model", mismatched, "--method", "linear_probe", "--num_train_epochs", 1]
    with refused("48 x 48", "set image_size to 32", "the size it was made for") as refusal:
        finetune(tmp_path / "run", *command)
    assert not (tmp_path / "run").exists()
    assert refusal.value.fix == {"image_size": 32}
    with refused("cannot take images of 48 x 48 pixels, the output of its image processor"):
        Classifier.load(str(mismatched))


def test_a_model_of_other_channels_is_refused(tmp_path, refused):
    config = T.ResNetConfig(num_channels=4, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2)
    T.ResNetForImageClassification(config).save_pretrained(tmp_path / "four")
    T.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "four")
    with refused("4 channels", "grey images (1) and RGB (3)"):
        Classifier.build(ModelArguments(model=str(tmp_path / "four")), ABC, ImageInfo(None, 3), pretrained=True)
    with refused("4 channels"):
        Classifier.load(str(tmp_path / "four"))


def test_a_batch_of_one_image_that_batchnorm_cannot_take(tmp_path, refused):
    data = noise_images(tmp_path / "data", {"ant": 12, "bee": 12})
    options = ["--data_dir", data, "--model", "timm/test_resnet", "--image_size", 8, "--num_train_epochs", 1,
               "--max_train_samples", 9, "--per_device_train_batch_size", 4]  # fmt: skip
    with refused("the last of the 9 images is a batch of its own", "dataloader_drop_last: true"):
        train(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
