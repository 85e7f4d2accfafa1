"""The page of the demo. A Space runs without ftkit: its `app.py` contains the source of these functions."""

import html
from collections import Counter
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, UnidentifiedImageError

from ftkit.data.pixels.images import BAD_IMAGE_ERRORS, to_mode

Fit = Callable[[Image.Image], Image.Image | None]


def unique_names(names: list[str]) -> list[str]:
    """The class names, made unique: a name that several classes share is followed by the class's number."""
    often = Counter(names)
    return [f"{name} ({number})" if often[name] > 1 else name for number, name in enumerate(names)]


def fit_drawing(drawing: Image.Image, size: tuple[int, int], share: float) -> Image.Image | None:
    """A drawing prepared as MNIST's digits were (LeCun et al. 1998), or None if nothing is drawn.

    It becomes white on black, is scaled to fit a square with its proportions kept, and is placed with its centre of
    mass in the middle.

    Args:
        drawing: an image of mode L, on a uniform background, dark or light.
        size: height and width of the result, in pixels.
        share: the side of the square as a share of the shorter side; 20/28 in MNIST.

    Returns:
        An image of mode L.
    """
    values = np.asarray(drawing, np.float32)
    ground = np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]]))
    strength = np.abs(values - ground)
    if strength.max() < 32:
        return None
    ink = Image.fromarray((strength * (255 / strength.max())).round().astype(np.uint8))
    ink = ink.crop(ink.point([0] * 26 + [255] * 230).getbbox())  # ignores faint traces
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
    """The page: a pad to draw on if there is a `fit`, an upload for image files, and the answer beside them.

    Args:
        title: the title, any text.
        classify: function from an image of mode L or RGB to the probability of each class.
        channels: number of channels of a decoded upload: 1 or 3.
        fit: function from a drawing of mode L to an image for the model, or None if nothing is drawn.
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
        except UnidentifiedImageError:  # its message contains a path of the server
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
                        # With an initial value, the brush is selected from the start.
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
        # No decoding by gradio: the file's bytes are decoded as in an evaluation.
        upload.change(classify_file, upload, answer, preprocess=False, trigger_mode="always_last")
    return page


def serve(page: gr.Blocks, **options: Any) -> None:
    """Serve a page without using the network: no share link, no telemetry, system fonts.

    Args:
        options: options of `Blocks.launch`.
    """
    fonts = {"font": gr.themes.Font("sans-serif"), "font_mono": gr.themes.Font("monospace")}
    css = "#answer { overflow-wrap: anywhere } #answer .confidence { white-space: nowrap }"
    page.launch(
        share=False, footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False, ssr_mode=False,
        pwa=False, theme=gr.themes.Default(**fonts), css=css, **options,
    )  # fmt: skip
