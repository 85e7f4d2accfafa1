"""The suffixes of image files."""

from functools import cache
from pathlib import PurePosixPath

from PIL import Image

from ftkit.data.pixels.plugins import register_plugins

# Formats whose headers Pillow recognises, and whose pixels it never reads by itself.
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}
# The packages that read further formats.
_PACKAGES = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "-U pillow"}


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of all formats that PIL reads with the plugins installed, in lower case, such as `.png`."""
    register_plugins()
    Image.init()
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN and name not in _STUBS)


def plugin_of(suffix: str) -> str | None:
    """The package to install to read images with this suffix; None if they are read already, or by no package."""
    return None if suffix in image_suffixes() else _PACKAGES.get(suffix)


def is_image_name(text: str) -> bool:
    """Whether a text ends with the suffix of an image file."""
    return PurePosixPath(text.strip().replace("\\", "/")).suffix.lower() in image_suffixes()
