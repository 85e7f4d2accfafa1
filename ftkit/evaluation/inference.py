"""Images without labels -> the likeliest classes of each, batch by batch."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, Features, Image, Value

from ftkit.data.pixels.decoding import Decoder, cores, over_all_rows
from ftkit.data.pixels.normalize import channels_last
from ftkit.models.anatomy import is_convolutional
from ftkit.models.classifier import Classifier
from ftkit.training.stages.memory import check_evaluation

_CPU_BATCH = 32  # images: with larger batches, a convnet takes 1.4 times as long on a CPU
_DECODED = 1 << 26  # bytes of pixels
_SMALLEST_BATCH, _WORTH_PROCESSES = 8, 32  # images: a photograph may take a core a tenth of a second


class Classified(NamedTuple):
    """The result of a batch.

    Attributes:
        files: the images that decode.
        answers: the k likeliest classes of each of these images, likeliest first, with their probabilities.
        bad: the images that do not decode: dictionaries with `file` and `reason`, among others.
    """

    files: list[str]
    answers: list[list[tuple[str, float]]]
    bad: list[dict[str, Any]]


def check_room(classifier: Classifier, count: int, batch_size: int = 128) -> None:
    """Check that the batches in which `classify` takes `count` files fit into memory.

    Raises:
        UserError: they do not; the message names a `batch_size` that does.
    """
    device = PartialState().device
    at_once = _CPU_BATCH if device.type == "cpu" else batch_size
    batch = min(at_once, batch_size, _decoded_together(classifier), count)
    check_evaluation(classifier.model, (classifier.channels, *classifier.size), batch, device)


def _decoded_together(classifier: Classifier) -> int:
    """The most images to decode at once: 64 MB of pixels, or one."""
    return max(_DECODED // (classifier.channels * math.prod(classifier.size)), 1)


def classify(classifier: Classifier, files: list[str], top_k: int = 1, batch_size: int = 128) -> Iterator[Classified]:
    """Classify image files from the same pixels as an evaluation, on the accelerator if there is one.

    The answer for an image does not depend on the other files. Processes decode ahead of the model, unless there are
    only a few images.

    Args:
        classifier: a classifier of C classes; its model is moved to the accelerator.
        files: paths of image files.
        top_k: the number k of classes per image, at most C.
        batch_size: the most images to decode and classify together.

    Yields:
        The result of each batch, in the order of the files.
    """
    device, normalize, task = PartialState().device, classifier.normalize, classifier.task
    model = classifier.model.to(device).eval()
    convolutional = is_convolutional(model)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=channels_last(images) if convolutional else images).logits

    @torch.inference_mode()
    def answers(pixels: np.ndarray) -> list[list[tuple[str, float]]]:
        parts = torch.from_numpy(pixels).split(_CPU_BATCH if device.type == "cpu" else len(pixels))
        return task.likeliest(torch.cat([logits_of(normalize(part.to(device))) for part in parts]), top_k)

    decoder = Decoder(_rows(files), classifier.processor, classifier.channels)
    share = max(len(files) // (4 * cores()), _SMALLEST_BATCH)  # so that every core has work
    chunk = min(batch_size, share, _decoded_together(classifier))
    for rows, decoded in over_all_rows(decoder, len(files), "classifying", chunk, _WORTH_PROCESSES):
        good = [files[rows[position]] for position in decoded.positions]
        yield Classified(good, answers(decoded.pixels) if good else [], decoded.bad)


def _rows(files: list[str]) -> Dataset:
    features = Features(image=Image(), index=Value("int64"))
    return Dataset.from_dict({"image": files, "index": range(len(files))}, features=features)
