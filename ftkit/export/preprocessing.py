"""What must be done to an image before an exported model, told to those who have neither the run nor ftkit."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ftkit.data.pixels.normalize import geometry_key, normalizer
from ftkit.export.formats import INPUT, OUTPUT
from ftkit.models.build import class_names, model_channels

_FILE = "preprocessing.json"
_HOW = (
    "Decode an image to 8-bit {mode} as a viewer shows it: turned as its EXIF orientation says, what is transparent "
    "on white. Resize it to {height} x {width} pixels (height x width) as image_processor says; divide by 255, take "
    "mean away and divide by std, channel by channel; put channels first, and stack images to float32 of the shape "
    "of input. transformers' AutoImageProcessor.from_pretrained(<this folder>) does all that follows the decoding: "
    'processor(images, return_tensors="pt")["pixel_values"]{rest}. The index of the largest logit is that of the '
    "class in class_names; the softmax of the logits gives probabilities."
)


def describe_preprocessing(model: PreTrainedModel, processor: Any, pixel_values: torch.Tensor) -> dict[str, Any]:
    """How to feed an exported `model`; all of it can be written as JSON.

    Args:
        processor: the image processor that is saved with the model.
        pixel_values: float32 (N, C, H, W), what the model is fed.
    """
    channels, (height, width) = model_channels(model), pixel_values.shape[2:]
    normalize, grey = normalizer(processor, channels), channels == 1
    scale, offset = (values.flatten().double() for values in (normalize.scale, normalize.offset))
    rest = ", of whose three equal channels the first is taken ([:, :1])" if grey else ""
    names = class_names(model)
    return {
        "how_to_feed": _HOW.format(
            mode="grey (PIL's mode L)" if grey else "RGB", height=height, width=width, rest=rest
        ),
        "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", channels, height, width]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", len(names)]},
        "channels": ["grey"] if grey else ["red", "green", "blue"],
        "mean": [round(value, 6) for value in (-offset / scale / 255).tolist()],  # of pixels in 0..1
        "std": [round(value, 6) for value in (1 / scale / 255).tolist()],
        "image_processor": json.loads(geometry_key(processor)),
        "class_names": names,
    }


def write_preprocessing(folder: Path, model: PreTrainedModel, processor: Any, pixel_values: torch.Tensor) -> None:
    """Write `preprocessing.json`, and beside it the file that the image processor is loaded from."""
    described = describe_preprocessing(model, processor, pixel_values)
    (folder / _FILE).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if isinstance(processor, TimmWrapperImageProcessor):  # it lives in the model's config
        model.config.save_pretrained(folder)
    else:
        processor.save_pretrained(folder)
