"""What must be done to an image before an exported model, told to those who have neither the run nor ftkit."""

import json
from pathlib import Path
from typing import Any

import torch

from ftkit.data.pixels.normalize import geometry_key
from ftkit.export.formats import INPUT, OUTPUT
from ftkit.models.classifier import Classifier

_FILE = "preprocessing.json"
_HOW = (
    "Decode an image to 8-bit {mode} as a viewer shows it: turned as its EXIF orientation says, what is transparent "
    "on white. Resize it to {height} x {width} pixels (height x width) as image_processor says; divide by 255, take "
    "mean away and divide by std, channel by channel; put channels first, and stack images to float32 of the shape "
    "of input. transformers' AutoImageProcessor.from_pretrained(<this folder>) does all that follows the decoding: "
    'processor(images, return_tensors="pt")["pixel_values"]{rest}. {meaning}'
)


def describe_preprocessing(classifier: Classifier, pixel_values: torch.Tensor) -> dict[str, Any]:
    """How to feed an exported `classifier`; all of it can be written as JSON.

    Args:
        pixel_values: float32 (N, C, H, W), what the model is fed.
    """
    channels, (height, width) = classifier.channels, pixel_values.shape[2:]
    normalize, grey = classifier.normalize, channels == 1
    scale, offset = (values.flatten().double() for values in (normalize.scale, normalize.offset))
    rest = ", of whose three equal channels the first is taken ([:, :1])" if grey else ""
    return {
        "how_to_feed": _HOW.format(
            mode="grey (PIL's mode L)" if grey else "RGB",
            height=height,
            width=width,
            rest=rest,
            meaning=classifier.task.logits_meaning,
        ),
        "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", channels, height, width]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", len(classifier.task.names)]},
        "channels": ["grey"] if grey else ["red", "green", "blue"],
        "mean": [round(value, 6) for value in (-offset / scale / 255).tolist()],  # of pixels in 0..1
        "std": [round(value, 6) for value in (1 / scale / 255).tolist()],
        "image_processor": json.loads(geometry_key(classifier.processor)),
        "class_names": classifier.task.names,
    }


def write_preprocessing(folder: Path, classifier: Classifier, pixel_values: torch.Tensor) -> None:
    """Write `preprocessing.json`, and beside it the file that the image processor is loaded from."""
    described = describe_preprocessing(classifier, pixel_values)
    (folder / _FILE).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    classifier.save_processor(folder)
