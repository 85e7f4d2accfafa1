"""The demo: an image or a drawing in, the likeliest classes out; as a page on this machine, or as a Space of the Hub.

Where a Space runs there is no ftkit. Its `app.py` is the source of those functions below that make the page and the
pixels, with a few lines that load the model.
"""

import dataclasses
import html
import inspect
import platform
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from huggingface_hub import SpaceCardData
from peft import PeftModel
from PIL import Image, UnidentifiedImageError

from ftkit.data.pixels.images import BAD_IMAGE_ERRORS, check_decodable, to_8_bit, to_mode
from ftkit.errors import UserError
from ftkit.methods.adapters import merged
from ftkit.models import timm_models
from ftkit.models.classifier import Classifier

_DRAWN = ("mnist", "digits", "fashion_mnist")  # data whose images are small, grey, and light on black
_SMALL = 64  # pixels: the side up to which images of one channel can be drawn
_APP = '''"""A demo of an image classifier. It was written by ftkit, which it does not need."""

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
CHANNELS = {channels}  # that images are decoded to
BAD_IMAGE_ERRORS = ({errors})
_ORIENTATION = 0x0112  # in EXIF
Fit = Callable[[Image.Image], Image.Image | None]


{parts}

model = AutoModelForImageClassification.from_pretrained(MODEL, **OPTIONS).eval()
processor = AutoImageProcessor.from_pretrained(MODEL, **OPTIONS)
names = tell_apart([model.config.id2label[number] for number in range(model.config.num_labels)])


@torch.inference_mode()
def classify(image: Image.Image) -> dict[str, float]:
    """The probability of every class. `image` is of mode L or RGB."""
    pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][:, :CHANNELS]
    return dict(zip(names, probabilities(model(pixel_values).logits[0]), strict=True))


page = build_page({title!r}, classify, CHANNELS, {fit})

if __name__ == "__main__":
    serve(page)
'''

Fit = Callable[[Image.Image], Image.Image | None]


class Demo:
    """What the page asks: a classifier of single images, by the same pixels as an evaluation, on the CPU.

    Attributes:
        names: of the classes, in the order of the logits, no two of them alike.
    """

    def __init__(self, classifier: Classifier):
        self.classifier, self.names = classifier, tell_apart(classifier.task.names)
        classifier.model.eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> dict[str, float]:
        """The probability of every class. `image` is of mode L or RGB."""
        logits = self.classifier.model(pixel_values=self.pixel_values(image)).logits[0]
        return dict(zip(self.names, self.classifier.task.probabilities(logits), strict=True))

    def pixel_values(self, image: Image.Image) -> torch.Tensor:
        """float32 (1, C, H, W)."""
        return self.classifier.normalize(torch.from_numpy(self.classifier.geometry([image])))

    def fit(self, dataset: str | None) -> partial | None:
        """What makes an image for this model of a drawing, or None where the model knows no images that can be drawn.

        Args:
            dataset: what it was trained on, as far as that is known.
        """
        digits, size = set(self.names) == set("0123456789"), self.classifier.size
        if not (digits or dataset in _DRAWN or (self.classifier.channels == 1 and max(size) <= _SMALL)):
            return None
        # scikit-learn's digits were not made as MNIST was: every one fills its 8 rows.
        full = dataset == "digits" or (digits and size == (8, 8))
        return partial(fit_drawing, size=size, share=1.0 if full else 20 / 28)


def tell_apart(names: list[str]) -> list[str]:
    """The names; behind those that several classes have, the number of the class."""
    often = Counter(names)
    return [f"{name} ({number})" if often[name] > 1 else name for number, name in enumerate(names)]


def fit_drawing(drawing: Image.Image, size: tuple[int, int], share: float) -> Image.Image | None:
    """A drawing as MNIST's images were made of digits on paper, or None where nothing is drawn.

    It becomes white on black, is scaled to fit a square, its proportions kept, and is placed with its centre of mass
    in the middle (LeCun et al. 1998).

    Args:
        drawing: of mode L, on an even ground, dark or light.
        size: height and width of the result, in pixels.
        share: of its shorter side that the square has; 20/28 in MNIST.

    Returns:
        Mode L.
    """
    values = np.asarray(drawing, np.float32)
    ground = np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]]))
    strength = np.abs(values - ground)
    if strength.max() < 32:
        return None
    ink = Image.fromarray((strength * (255 / strength.max())).round().astype(np.uint8))
    ink = ink.crop(ink.point([0] * 26 + [255] * 230).getbbox())  # without what is too faint to be meant
    scale = share * min(size) / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.BOX)
    mass = np.asarray(ink, np.float64)
    corner = []
    for room, weights in zip(size[::-1], (mass.sum(0), mass.sum(1)), strict=True):
        centre = np.average(np.arange(len(weights)), weights=weights)
        corner.append(int(np.clip(round(room / 2 - centre), 0, room - len(weights))))
    image = Image.new("L", size[::-1])
    left, top = corner
    image.paste(ink, (left, top))
    return image


def build_page(
    title: str, classify: Callable[[Image.Image], dict[str, float]], channels: int, fit: Fit | None
) -> gr.Blocks:
    """The page: a pad to draw on, where there is a `fit`, and a place for image files; beside them, the answer.

    Args:
        title: any text.
        classify: takes an image of mode L or RGB and gives the probability of each class.
        channels: what an uploaded image is decoded to: 1 or 3.
        fit: makes an image of a drawing, which is of mode L, or gives None where nothing is drawn.
    """
    blank = {"background": Image.new("RGB", (280, 280), "white"), "layers": [], "composite": None}
    hint = "Draw something"

    def classify_drawing(drawn: dict[str, Image.Image | None]) -> dict[str, float] | str:
        image = fit(to_mode(drawn["composite"], 1)) if fit and drawn["composite"] else None
        return hint if image is None else classify(image)

    def clear() -> tuple[dict[str, Any], str]:
        return blank, hint

    def classify_file(file: dict[str, str] | None) -> dict[str, float] | None:
        if file is None:
            return None
        try:
            with Image.open(file["path"]) as opened:
                image = to_mode(opened, channels)
        except UnidentifiedImageError:  # its message names a place on this machine
            raise gr.Error("This is not an image of a known format.", print_exception=False) from None
        except BAD_IMAGE_ERRORS as error:
            reason = html.escape(str(error) or type(error).__name__)
            raise gr.Error(f"This image does not decode: {reason}", print_exception=False) from None
        return classify(image)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        with gr.Row():
            with gr.Column():
                if fit is not None:
                    with gr.Tab("Draw"):
                        # With a value of its own the pad has its brush in hand from the start.
                        pad = gr.Sketchpad(
                            blank, type="pil", canvas_size=(280, 280), fixed_canvas=True, layers=False, transforms=(),
                            brush=gr.Brush(default_size=12, colors=["#000000"], color_mode="fixed"),
                            eraser=gr.Eraser(default_size=20), buttons=[], show_label=False,
                        )  # fmt: skip
                with gr.Column() if fit is None else gr.Tab("Upload"):
                    upload = gr.Image(buttons=[], show_label=False)
            with gr.Column():
                answer = gr.Label(hint if fit else None, num_top_classes=5, show_label=False, elem_id="answer")
        if fit is not None:
            pad.input(classify_drawing, pad, answer, show_progress="hidden", trigger_mode="always_last")
            pad.clear(clear, None, [pad, answer], show_progress="hidden", api_visibility="private")
        # Without gradio's decoding: the bytes of the file are decoded as in an evaluation.
        upload.change(classify_file, upload, answer, preprocess=False, trigger_mode="always_last")
    return page


def serve(page: gr.Blocks, **options: Any) -> None:
    """Start a page that asks nothing of the network: no link to share, no telemetry, the system's own fonts.

    Args:
        options: more of `Blocks.launch`.
    """
    fonts = {"font": gr.themes.Font("sans-serif"), "font_mono": gr.themes.Font("monospace")}
    css = "#answer { overflow-wrap: anywhere } #answer .confidence { white-space: nowrap }"
    page.launch(
        share=False, footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False, ssr_mode=False,
        pwa=False, theme=gr.themes.Default(**fonts), css=css, **options,
    )  # fmt: skip


def write_space(
    folder: Path,
    title: str,
    demo: Demo,
    fit: partial | None,
    hub_model_id: str | None,
    options: dict[str, Any],
    license_id: str | None,
) -> None:
    """Write a Space that shows the same page and gives the same answers, without ftkit.

    Args:
        folder: made new.
        fit: of the demo.
        hub_model_id: where the Space finds the model; None to write it into the folder, its adapters merged.
        options: of `from_pretrained` there, such as `revision`.
        license_id: as the Hub calls it; None where it is not known.

    Raises:
        UserError: the model holds adapters that cannot become plain weights.
    """
    classifier, place = demo.classifier, repr(hub_model_id)
    if hub_model_id is None:
        if isinstance(classifier.model, PeftModel):
            noise = demo.pixel_values(Image.effect_noise(classifier.size[::-1], 100))
            try:
                classifier = dataclasses.replace(classifier, model=merged(classifier.model, noise))
            except UserError as error:
                raise UserError(f"space: it would hold the model with its adapters in its weights. {error}") from error
        classifier.save(folder / "model")
        place = 'str(Path(__file__).with_name("model"))'
    folder.mkdir(parents=True, exist_ok=True)
    parts = (
        classifier.task.probabilities,
        tell_apart,
        check_decodable,
        to_mode,
        to_8_bit,
        fit_drawing,
        build_page,
        serve,
    )
    errors = (f"{'Image.' * hasattr(Image, error.__name__)}{error.__name__}" for error in BAD_IMAGE_ERRORS)
    app = _APP.format(
        title=title,
        place=place,
        options=options,
        channels=classifier.channels,
        errors=", ".join(errors),
        parts="\n\n".join(inspect.getsource(part) for part in parts),
        fit=fit and f"partial(fit_drawing, size={fit.keywords['size']}, share={fit.keywords['share']})",
    )
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
        models=None if hub_model_id is None else [hub_model_id],
        license=license_id,
    )
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
