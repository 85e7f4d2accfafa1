"""How to preprocess images for an exported model, for users without the run or ftkit."""

import json
from pathlib import Path
from typing import Any

import torch

from ftkit.data.pixels.normalize import geometry_key
from ftkit.export.formats import INPUT, OUTPUT
from ftkit.models.classifier import Classifier

_FILE = "preprocessing.json"
_HOW = (
    "Decode an image to 8-bit {mode} as a viewer shows it: apply its EXIF orientation, and lay transparency on white. "
    "Resize it to {height} x {width} pixels (height x width) as image_processor says; divide by 255, subtract mean "
    "and divide by std, by channel; put channels first, and stack images to float32 with the shape of input. "
    "transformers' AutoImageProcessor.from_pretrained(<this folder>) does everything after decoding: "
    'processor(images, return_tensors="pt")["pixel_values"]{rest}. {meaning}'
)


def describe_preprocessing(classifier: Classifier, pixel_values: torch.Tensor) -> dict[str, Any]:
    """How to feed an exported `classifier`, as values that JSON can hold.

    Args:
        pixel_values: float32 (N, C, H, W), an input of the model.
    """
    channels, (height, width) = classifier.channels, pixel_values.shape[2:]
    normalize, grey = classifier.normalize, channels == 1
    scale, offset = (values.flatten().double() for values in (normalize.scale, normalize.offset))
    rest = ", then keep the first of three equal channels ([:, :1])" if grey else ""
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
        "mean": [round(value, 6) for value in (-offset / scale / 255).tolist()],  # for pixels in 0..1
        "std": [round(value, 6) for value in (1 / scale / 255).tolist()],
        "image_processor": json.loads(geometry_key(classifier.processor)),
        "class_names": classifier.task.names,
    }


def write_preprocessing(folder: Path, classifier: Classifier, pixel_values: torch.Tensor) -> None:
    """Write `preprocessing.json` and the image processor's own file to `folder`."""
    described = describe_preprocessing(classifier, pixel_values)
    (folder / _FILE).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    classifier.save_processor(folder)
