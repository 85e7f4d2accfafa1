"""Image files of any mode -> the pixels that a viewer shows."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from ftkit.data.pixels.plugins import register_plugins

register_plugins()  # in each process that decodes
# Raised by PIL's decoders: OSError also for an unknown format, RuntimeError by AVIF, AttributeError by SPIDER,
# IndexError by QOI.
BAD_IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, RuntimeError, AttributeError, LookupError, Image.DecompressionBombError,
)  # fmt: skip
GRAY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_SAMPLE = 256
_ORIENTATION = 0x0112


class ImageInfo(NamedTuple):
    """The images of a dataset: `size` is (height, width) in pixels, or None if sizes differ."""

    size: tuple[int, int] | None
    channels: int


def encoded(dataset: Dataset) -> Dataset:
    """`dataset` with its image column as dictionaries of `bytes` and `path`, not decoded."""
    return dataset.select_columns("image").cast_column("image", ImageFeature(decode=False))


def open_image(file: dict | None) -> Image.Image:
    """Open one row of an `encoded` dataset, without decoding its pixels yet."""
    found = _content_or_path(file)
    return Image.open(BytesIO(found) if isinstance(found, bytes) else found)


def file_bytes(file: dict | None) -> bytes:
    """All bytes of one row of an `encoded` dataset."""
    found = _content_or_path(file)
    if isinstance(found, bytes):
        return found
    with open(found, "rb", buffering=0) as opened:  # faster than pathlib for small files
        return opened.read()


def _content_or_path(file: dict | None) -> bytes | str:
    if file is None or file["bytes"] is file["path"] is None:
        raise OSError("the row holds no image")
    return file["path"] if file["bytes"] is None else file["bytes"]


def describe_images(dataset: Dataset) -> ImageInfo:
    """Size and channels from the headers of up to 256 images, evenly spaced; broken files are skipped."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset))).astype(int))
    sizes, channels = set(), 1
    for row in encoded(dataset.select(rows)):
        try:
            with open_image(row["image"]) as image:
                check_decodable(image)
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
                sizes.add((image.width, image.height) if turned else (image.height, image.width))
                if image.mode not in GRAY_MODES:
                    channels = 3
        except BAD_IMAGE_ERRORS:
            continue
    return ImageInfo(sizes.pop() if len(sizes) == 1 else None, channels)


def check_decodable(image: Image.Image) -> None:
    """Refuse an image before its pixels are decoded; PIL itself refuses only images of twice its limit.

    Raises:
        DecompressionBombError: the image has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
        OSError: the image is PostScript, a program that PIL would run with Ghostscript.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{image.width:,} x {image.height:,} pixels are more than the limit of {limit:,}: shrink it"
        )
    if image.format == "EPS":
        raise OSError("PostScript is a program and is not run: convert it to PNG")


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Decode `image` to 8-bit grayscale (1 channel) or RGB (3 channels), as a viewer shows it.

    The EXIF orientation is applied; 16-bit grey values are scaled to 8 bits (PIL would clip them at 255);
    transparency is laid on white.

    Raises:
        one of `BAD_IMAGE_ERRORS`: the image does not decode, or must not be decoded (see `check_decodable`).
    """
    check_decodable(image)
    mode = "L" if channels == 1 else "RGB"
    transparent = "transparency" in image.info
    if image.mode == mode and not transparent and _ORIENTATION not in image.getexif():
        image.load()
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = to_8_bit(image)
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def to_8_bit(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    else:
        # Integers of more than 8 bits: full scale is 65535, unless the mode is 32-bit and no value exceeds 255.
        scale = 1.0 if image.mode == "I" and values.max(initial=0) <= 255 else 255 / 65535
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
