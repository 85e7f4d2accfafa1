"""Images that a plain pipeline reads differently, or that lose detail in 8 bits; found while decoding."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageOps

from ftkit.data.pixels.images import GRAY_MODES

logger = logging.getLogger(__name__)
IN_COLOUR = "in colour"
_DIM = 32  # of 256 levels: an image of more than 8 bits without a value above it is called dim
_DEEP = {"I": "32-bit", "F": "floating-point"}  # modes of more than 8 bits; the others are 16-bit
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_PREVIEWS = {"MPO", "ICO", "ICNS"}  # formats whose further images are smaller copies, or views, of the first
# For each kind, the end of the sentence "12 of the 300 images of train …".
KINDS = {
    "16-bit": "are 16-bit: ftkit scales them to 8 bits, and a plain pipeline cuts their values off at 255",
    "32-bit": "are 32-bit: ftkit scales values up to 65,535 to 8 bits, and a plain pipeline cuts them off at 255",
    "floating-point": "are floating-point: ftkit scales values up to 1 to 8 bits, and a plain pipeline cuts them down "
    "to whole numbers",
    "transparent": "have transparent parts: ftkit lays them on white, and a plain pipeline shows the colours behind",
    "out of range": "have values outside the range, which are cut off (the range is 0 to 1 or 0 to 255 in "
    "floating-point files, else 0 to 65,535): rescale them",
    "dim": f"have more than 8 bits, but no value above {_DIM}/256 of the range, so few grey levels are left: rescale "
    "them",
    "several frames": "have several frames or pages, of which the first is used",
    IN_COLOUR: "are in colour, and are converted to grey for a model of grey images",
}
# The kinds that a plain pipeline reads differently.
READ_DIFFERENTLY = {"16-bit", "32-bit", "floating-point", "transparent"}


def kinds_of(image: Image.Image, shown: Image.Image) -> list[str]:
    """The kinds, as in `KINDS`, of an open image that `to_mode` decoded to `shown`: none for nearly all images."""
    found = [IN_COLOUR] if shown.mode == "L" and image.mode not in GRAY_MODES else []
    deep = image.mode in _DEEP or image.mode.startswith("I;16")
    if (deep or image.mode in _ALPHA or "transparency" in image.info) and _differs_elsewhere(image, shown):
        # 16-bit files of some formats are opened as 32-bit.
        name = "16-bit" if image.format in ("PNG", "PPM") else _DEEP.get(image.mode, "16-bit")
        found.append(name if deep else "transparent")
    if deep:
        found += _losses(image, shown)
    if image.format not in _PREVIEWS and getattr(image, "is_animated", False):
        found.append("several frames")
    return found


def _differs_elsewhere(image: Image.Image, shown: Image.Image) -> bool:
    """Whether transformers' `load_image`, which every pipeline calls, gives other pixels."""
    elsewhere = ImageOps.exif_transpose(image)
    if elsewhere.mode == "P":
        elsewhere = elsewhere.convert("RGBA")  # the same colours, without a warning from PIL
    elsewhere = elsewhere.convert("RGB").convert(shown.mode)
    return ImageChops.difference(shown, elsewhere).getbbox() is not None


def _losses(image: Image.Image, shown: Image.Image) -> list[str]:
    """The kinds, of an image of more than 8 bits, that lose more than its finest steps."""
    values, found = np.asarray(image), []
    low, high = values.min(), values.max()
    if not (low > -0.5 / 255 and high < (256 if image.mode == "F" else 65536)):  # true for NaN
        found.append("out of range")
    whole = image.mode == "I" and high <= 255  # 8 bits in a larger type
    if not whole and high > 0 and np.asarray(shown).max() < _DIM:
        found.append("dim")
    return found


def in_colour(splits: Iterable[Any]) -> bool:
    """Whether a colour image of a split was decoded to grey; `splits` are `ftkit.data.feeding.tensors.Images`."""
    return any(IN_COLOUR in images.kinds for images in splits)


def sentences(kinds: Mapping[str, Mapping[str, int]], counts: Mapping[str, int]) -> list[str]:
    """A sentence for each split and kind, such as "12 of the 300 images of train are 16-bit: …".

    Args:
        kinds: for each split, the number of its images of each kind.
        counts: the number of images of each split.
    """
    return [
        f"{n:,} of the {counts[split]:,} images of {split} {KINDS[kind]}"
        for split, found in kinds.items()
        for kind, n in found.items()
    ]


def log_kinds(splits: Mapping[str, Any]) -> None:
    """Warn of the images that are skipped, and of those of each kind, in these `Images` by split."""
    for split, images in splits.items():
        if bad := images.skipped:
            n, count = len(bad), len(bad) + len(images)
            logger.warning(
                "  %d of the %d images of %s do not decode and are skipped: %s", n, count, split, bad[0]["file"]
            )
    counts = {split: len(images) for split, images in splits.items()}
    for sentence in sentences({split: images.kinds for split, images in splits.items()}, counts):
        logger.warning("  %s", sentence)
