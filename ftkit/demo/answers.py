"""The answers of the page: the probabilities of single images, and images for the model from drawings."""

import json
from functools import partial

import torch
from PIL import Image

from ftkit.config import local_model
from ftkit.demo.page import fit_drawing, unique_names
from ftkit.models.classifier import Classifier
from ftkit.places import shown

_DRAWN = ("mnist", "digits", "fashion_mnist")  # data sets of small grey images, light on black
_SMALL = 64  # pixels: images of one channel up to this side can be drawn


class Demo:
    """A classifier of single images on the CPU, from the same pixels as an evaluation.

    Attributes:
        names: the class names, in the order of the logits, all different.
    """

    def __init__(self, classifier: Classifier):
        self.classifier, self.names = classifier, unique_names(classifier.task.names)
        classifier.model.eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> dict[str, float]:
        """The probability of every class for an image of mode L or RGB."""
        logits = self.classifier.model(pixel_values=self.pixel_values(image)).logits[0]
        return dict(zip(self.names, self.classifier.task.probabilities(logits), strict=True))

    def pixel_values(self, image: Image.Image) -> torch.Tensor:
        """The model's input for an image: float32 (1, C, H, W)."""
        return self.classifier.normalize(torch.from_numpy(self.classifier.geometry([image])))

    def fit(self, dataset: str | None) -> partial | None:
        """The function that turns a drawing into an image for this model, or None if its images cannot be drawn.

        Args:
            dataset: the name of the model's training data, or None if that is unknown.
        """
        digits, size = set(self.names) == set("0123456789"), self.classifier.size
        if not (digits or dataset in _DRAWN or (self.classifier.channels == 1 and max(size) <= _SMALL)):
            return None
        # scikit-learn's digits have no margin as MNIST's have: each fills its 8 rows.
        full = dataset == "digits" or (digits and size == (8, 8))
        return partial(fit_drawing, size=size, share=1.0 if full else 20 / 28)


def title(model: str) -> str:
    """The title of the page: the name of the model's run, of its folder, or on the Hub."""
    folder = local_model(model)
    return model if folder is None else shown(str(folder.resolve()))


def trained_on(model: str) -> str | None:
    """The name of the data that a run was trained on; None for a model outside a run."""
    folder = local_model(model)
    record = folder and folder.resolve().parent / "run.json"
    return json.loads(record.read_text(encoding="utf-8")).get("dataset") if record and record.is_file() else None
