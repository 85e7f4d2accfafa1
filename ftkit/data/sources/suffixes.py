"""The suffixes of image files."""

from PIL import Image


def image_suffixes() -> set[str]:
    """The suffixes of all formats that PIL reads, in lower case, such as `.png`."""
    Image.init()
    return {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
