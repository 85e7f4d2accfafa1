"""Images of other shapes are squashed, cropped or padded as `image_fit` says, and the saved processor says so too."""

import numpy as np
import pytest
import transformers as T
from PIL import Image
from transformers import AutoImageProcessor

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.data.pixels.normalize import PixelGeometry, geometry_key
from ftkit.models.classifier import Classifier
from ftkit.models.fitting import Geometry, fit_processor, geometry_of
from ftkit.tasks import SingleLabel

ABC = SingleLabel(["a", "b", "c"])
FITS = ("squash", "crop", "pad")
KINDS = {
    "vit": (T.ViTImageProcessor, {}),
    "vit, PIL": (T.ViTImageProcessorPil, {}),
    "clip": (T.CLIPImageProcessor, {}),
    "deit": (T.DeiTImageProcessor, {"size": {"height": 256, "width": 256}}),
    "bit": (T.BitImageProcessor, {"size": {"shortest_edge": 256}}),
    "levit": (T.LevitImageProcessor, {}),
    "convnext": (T.ConvNextImageProcessor, {"size": {"shortest_edge": 384}}),
}
# What a kind has no settings for.
CANNOT = {("levit", "pad"), ("convnext", "pad"), ("convnext", "squash")}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", KINDS)
def test_processors_of_transformers_are_set_by_trying(kind, fit, refused, tmp_path):
    build, options = KINDS[kind]
    processor = build(**options)
    if (kind, fit) in CANNOT:
        with refused("image_fit", f"cannot {fit} images to 64 x 64") as refusal:
            fit_processor(None, processor, (64, 64), fit)
        assert geometry_of(fit_processor(None, processor, (64, 64), refusal.value.fix["image_fit"])) is not None
        return
    for size in ((64, 64), (32, 48)):
        if kind == "convnext" and size != (64, 64):
            continue
        fitted = fit_processor(None, processor, size, fit)
        fitted.save_pretrained(tmp_path)
        assert geometry_of(AutoImageProcessor.from_pretrained(tmp_path)) == Geometry(size, fit)
        assert fitted.image_mean == processor.image_mean


def test_without_a_fit_the_size_alone_changes():
    deit = fit_processor(None, T.DeiTImageProcessor(), (112, 112), None)
    assert dict(deit.size) == {"height": 128, "width": 128} and dict(deit.crop_size) == {"height": 112, "width": 112}
    convnext = fit_processor(None, T.ConvNextImageProcessor(), (64, 64), None)  # which crops at sizes under 384
    assert geometry_of(convnext) == Geometry((64, 64), "crop")
    vit = T.ViTImageProcessor()
    assert fit_processor(None, vit, (224, 224), None) is vit is fit_processor(None, vit, None, "squash")


def test_a_processor_whose_output_has_many_sizes_is_refused(refused):
    processor = T.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    with refused("gives images of different sizes", "set image_fit to crop and image_size to 32 32"):
        fit_processor(None, processor, None, None)
    assert geometry_of(fit_processor(None, processor, (32, 32), "squash")) == Geometry((32, 32), "squash")


@pytest.mark.parametrize("fit", [None, *FITS])
@pytest.mark.parametrize("model", ["convnet", "timm/test_resnet"])
def test_a_new_model_is_saved_with_its_fit(model, fit, tmp_path, caplog):
    caplog.set_level("INFO")
    args = ModelArguments(model=model, image_size=[24], image_fit=fit)
    classifier = Classifier.build(args, ABC, ImageInfo((20, 40), 3), pretrained=False)
    classifier.save(tmp_path)
    default = "squash" if model == "convnet" else "crop"
    assert f"(image_fit: {fit or default}; others:" in caplog.text
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert geometry_of(processor) == geometry_of(classifier.processor) == Geometry((24, 24), fit or default)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    assert np.array_equal(classifier.geometry([photo]), PixelGeometry(processor)([photo]))


def test_the_padding_of_timm_is_the_mean_that_is_saved():
    """It is pixels, so it must not change when the mean of the data is measured, and the cache knows it."""
    args = ModelArguments(model="timm/test_resnet", image_size=[24], image_fit="pad")
    classifier = Classifier.build(args, ABC, ImageInfo(None, 3), pretrained=False)
    assert not classifier.needs_statistics
    others = ModelArguments(model=args.model, image_size=[24], image_fit="pad", image_mean=[0.1], image_std=[0.5])
    other = Classifier.build(others, ABC, ImageInfo(None, 3), pretrained=False)
    assert geometry_key(other.processor) != geometry_key(classifier.processor)
    corner = other.geometry([Image.new("RGB", (40, 20), "white")])[0, :, 0, 0]
    assert np.allclose(corner, 0.1 * 255, atol=1)


@pytest.mark.parametrize(
    ("size", "model", "taken"),
    [
        ((3000, 4000), "convnet", (64, 64)),
        ((3000, 4000), "timm/test_resnet", (160, 160)),
        ((100, 200), "mlp", (100, 200)),
        ((28, 28), "timm/test_resnet", (28, 28)),
    ],
)
def test_a_network_without_a_size_takes_that_of_small_images(size, model, taken, caplog):
    caplog.set_level("INFO")
    classifier = Classifier.build(ModelArguments(model=model), ABC, ImageInfo(size, 3), pretrained=False)
    assert classifier.size == taken
    assert ("3,000 x 4,000 pixels are large and are resized" in caplog.text) is (max(size) == 4000)
