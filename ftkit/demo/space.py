"""The demo as a Space on the Hub: a folder with an `app.py` that runs without ftkit, and the model or its name."""

import dataclasses
import inspect
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, SpaceCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from PIL import Image

from ftkit.config import local_model
from ftkit.data.pixels.images import BAD_IMAGE_ERRORS, check_decodable, to_8_bit, to_mode
from ftkit.demo.answers import Demo
from ftkit.demo.page import build_page, fit_drawing, serve, unique_names
from ftkit.errors import UserError
from ftkit.methods.adapters import merged
from ftkit.models import timm_models
from ftkit.models.classifier import Classifier

_APP = '''"""A demo of an image classifier, written by ftkit. It runs without ftkit."""

import html
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoImageProcessor, AutoModelForImageClassification

MODEL = {place}
OPTIONS = {options}
CHANNELS = {channels}  # of a decoded image
BAD_IMAGE_ERRORS = ({errors})
_ORIENTATION = 0x0112  # in EXIF
Fit = Callable[[Image.Image], Image.Image | None]


{parts}

model = AutoModelForImageClassification.from_pretrained(MODEL, **OPTIONS).eval()
processor = AutoImageProcessor.from_pretrained(MODEL, **OPTIONS)
names = unique_names([model.config.id2label[number] for number in range(model.config.num_labels)])


@torch.inference_mode()
def classify(image: Image.Image) -> dict[str, float]:
    """The probability of every class for an image of mode L or RGB."""
    pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][:, :CHANNELS]
    return dict(zip(names, probabilities(model(pixel_values).logits[0]), strict=True))


page = build_page({title!r}, classify, CHANNELS, {fit})

if __name__ == "__main__":
    serve(page)
'''


class Source(NamedTuple):
    """The source that a Space loads its model from.

    Attributes:
        hub_model_id: the model's name on the Hub; None if it is copied into the Space, with its adapters merged.
        options: options of `from_pretrained`, such as `revision`.
        license_id: the Hub's name for the license; None if it is unknown.
    """

    hub_model_id: str | None
    options: dict[str, Any]
    license_id: str | None


def source_of(
    model: str, classifier: Classifier, hub_model_id: str | None, revision: str | None, trust_remote_code: bool
) -> Source:
    """The source of a Space's model: a local model is copied unless `hub_model_id` names it on the Hub.

    Args:
        model: the folder or name that `classifier` was loaded from.

    Raises:
        UserError: the name is not valid on the Hub or belongs to adapters, or the Space would run code without
            `trust_remote_code`.
    """
    own_code = classifier.model.config.model_type.startswith("ftkit_")
    name = model if hub_model_id is None and local_model(model) is None else hub_model_id
    if name is not None:
        if classifier.has_adapters:
            raise UserError(
                f"hub_model_id: {model} holds adapters, which a Space cannot load by name: leave {name} out, and a "
                "model with the adapters merged is copied into the Space"
            )
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"hub_model_id: {error}") from None
        if own_code and not trust_remote_code:
            raise UserError(
                f"hub_model_id: the Space would run the code of {name}, a model of ftkit's own: allow it with "
                "--trust_remote_code true"
            )
    options: dict[str, Any] = {"trust_remote_code": True} if own_code or trust_remote_code else {}
    if name is not None and revision is not None:
        options["revision"] = revision
    return Source(name, options, _license_of(model))


def _license_of(model: str) -> str | None:
    """The license in the model card; None if there is no card or it names no license."""
    folder = local_model(model)
    try:
        return ModelCard.load(folder / "README.md" if folder else model).data.license
    except (OSError, ValueError):  # no card, locally or on the Hub, or no metadata in it
        return None


def write_space(folder: Path, title: str, demo: Demo, fit: partial | None, source: Source) -> None:
    """Write a Space that shows the same page and gives the same answers without ftkit.

    Args:
        folder: the Space's folder, created if it is missing.
        fit: the result of `demo.fit`.
        source: the source of the model.

    Raises:
        UserError: the model has adapters that cannot be merged.
    """
    classifier, place = demo.classifier, repr(source.hub_model_id)
    if source.hub_model_id is None:
        if isinstance(classifier.model, PeftModel):
            noise = demo.pixel_values(Image.effect_noise(classifier.size[::-1], 100))
            try:
                classifier = dataclasses.replace(classifier, model=merged(classifier.model, noise))
            except UserError as error:
                raise UserError(f"space: a Space needs a model with its adapters merged. {error}") from error
        classifier.save(folder / "model")
        place = 'str(Path(__file__).with_name("model"))'
    folder.mkdir(parents=True, exist_ok=True)
    app = _app(title, place, demo, fit, source.options)
    (folder / "app.py").write_text(app, encoding="utf-8")
    packages = ["gradio", "torch", "torchvision", "transformers"]
    packages += ["timm"] * timm_models.is_config(classifier.model.config)
    pinned = (f"{name}=={version(name).partition('+')[0]}\n" for name in packages)
    (folder / "requirements.txt").write_text("".join(pinned), encoding="utf-8")
    card = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        models=None if source.hub_model_id is None else [source.hub_model_id],
        license=source.license_id,
    )
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")


def _app(title: str, place: str, demo: Demo, fit: partial | None, options: dict[str, Any]) -> str:
    """The source of `app.py`; `place` is the Python expression for the place of the model."""
    functions: tuple[Any, ...] = (unique_names, check_decodable, to_mode, to_8_bit, fit_drawing, build_page, serve)
    errors = (f"{'Image.' * hasattr(Image, error.__name__)}{error.__name__}" for error in BAD_IMAGE_ERRORS)
    return _APP.format(
        title=title,
        place=place,
        options=options,
        channels=demo.classifier.channels,
        errors=", ".join(errors),
        parts="\n\n".join(map(inspect.getsource, (demo.classifier.task.probabilities, *functions))),
        fit=fit and f"partial(fit_drawing, size={fit.keywords['size']}, share={fit.keywords['share']})",
    )
