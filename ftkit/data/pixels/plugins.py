"""Readers of further image formats, if their packages are installed."""

from functools import cache


@cache
def register_plugins() -> dict[str, str]:
    """Let PIL read HEIC, if `pillow-heif` is installed; returns the versions of the packages that it found."""
    try:
        import pillow_heif
    except ModuleNotFoundError:
        return {}
    pillow_heif.register_heif_opener()
    return {"pillow_heif": pillow_heif.__version__}
