"""Images kept with an evaluation: pictures for the report, and files to check an exported model with."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.images import to_mode
from ftkit.tasks import Predictions

_SAMPLES = 16
_SIDE, _LARGE_SIDE = 96, 512  # pixels: the longer side of a thumbnail and of a larger picture is at most this
_QUALITY = 80  # of JPEG


def thumbnail(folder: Path, predictions: Predictions, position: int) -> Path:
    """The path of the thumbnail of the image at a position."""
    return folder / "gallery" / f"{predictions.index[position]}.png"


def larger(folder: Path, predictions: Predictions, position: int) -> Path:
    """The path of the larger picture of an image, which is missing if the thumbnail shows every pixel."""
    return thumbnail(folder, predictions, position).with_suffix(".jpg")


def write_gallery(folder: Path, predictions: Predictions, images: Images) -> None:
    """Write the pictures of the gallery: thumbnails of the pixels that the model saw, and larger ones of the files."""
    (folder / "gallery").mkdir(exist_ok=True)
    for old in (folder / "gallery").iterdir():
        old.unlink()
    positions = [position for kind in predictions.task.gallery(predictions).values() for position in kind]
    if not positions:
        return
    pixels = images.pixels(torch.tensor(positions).to(images.labels.device)).cpu().numpy()
    for position, (first, *others) in zip(positions, pixels, strict=True):
        picture = Image.fromarray(np.stack([first, *others], axis=-1) if others else first)
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        picture.save(thumbnail(folder, predictions, position), optimize=True)
        file = Image.open(BytesIO(images.file(position)))
        if max(file.size) > max(picture.size):
            file.draft(None, (_LARGE_SIDE, _LARGE_SIDE))  # JPEG decodes to a smaller size at once
            whole = to_mode(file, channels=3)
            whole.thumbnail((_LARGE_SIDE, _LARGE_SIDE), Image.Resampling.LANCZOS)
            whole.save(larger(folder, predictions, position), quality=_QUALITY, optimize=True)


def sample_files(folder: Path, predictions: Predictions) -> dict[int, Path]:
    """The paths of up to 16 evenly spaced images that `write_samples` keeps, by position."""
    positions = np.unique(np.linspace(0, len(predictions) - 1, min(_SAMPLES, len(predictions))).astype(int))
    return {int(position): folder / "samples" / str(predictions.index[position]) for position in positions}


def write_samples(folder: Path, predictions: Predictions, images: Images) -> None:
    """Keep the original files of some images, to check that a loaded or exported model gives the same logits."""
    (folder / "samples").mkdir(exist_ok=True)
    for position, path in sample_files(folder, predictions).items():
        path.write_bytes(images.file(position))
