"""Which model to build or load."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftkit.config.values import Options, from_json
from ftkit.errors import Advice

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


# The names of size and channels in the configs of models.
_OWN_SIZES, _OWN_CHANNELS = ("img_size", "image_size"), ("in_chans", "num_channels")


@dataclass
class ModelArguments:
    """Which model to build or load."""

    model: str = field(
        default="convnet",
        metadata={
            "help": "One of ftkit's own, timm/<architecture>, a model of the Hub, a local folder, or a file of "
            "weights (.pth, .pt, .bin, .safetensors; see architecture)."
        },
    )
    architecture: str | None = field(
        default=None,
        metadata={
            "help": "The model that a file of weights belongs to, such as timm/resnet18.a1_in1k (see model_args)."
        },
    )
    model_args: Options | None = field(
        default=None,
        metadata={"help": "Further arguments of the model's configuration, as a mapping (JSON on the command line)."},
    )
    head: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the modules that are the head. Default: the layers that change with the number of "
            "classes."
        },
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout before the head (timm: drop_rate) and in ftkit's own hidden layers."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side, or height and width, in pixels. Default: the model's, else the data's up to 224."},
    )
    image_fit: Literal["squash", "crop", "pad"] | None = field(
        default=None,
        metadata={
            "help": "Images of other shapes: squash them, crop them at the centre, or pad them. Default: the model's; "
            "crop for timm's, squash for ftkit's own."
        },
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "Per channel, of pixels in 0..1. Default: the model's, else measured on train."},
    )
    image_std: list[float] | None = field(default=None, metadata={"help": "See image_mean."})
    revision: str | None = field(default=None, metadata={"help": "A branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model. Only for a source that you trust."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.model_args, str) and self.model_args.startswith("{"):
            self.model_args = from_json(self.model_args)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that `image_size`, or the model's own key for it in `model_args`, asks for."""
        asked = [self.image_size, *((self.model_args or {}).get(key) for key in _OWN_SIZES)]
        return next((_as_size(value) for value in asked if value), None)

    def check(self) -> list[str]:
        """The errors in these arguments, one sentence each."""
        errors: list[str] = self._check_input(self.model_args) if isinstance(self.model_args, dict) else []
        if weights_file(self.model) is None and self.architecture is not None:
            errors.append(
                Advice(
                    f"architecture: {self.architecture} goes with a file of weights, and model: {self.model} is not "
                    "one: leave it out",
                    {"architecture": None},
                )
            )
        elif weights_file(self.model) is not None and self.architecture is None:
            errors.append(
                f"architecture is missing: name the model that the weights in {self.model} belong to, such as "
                "timm/resnet18"
            )
        if self.model_args is not None and not isinstance(self.model_args, dict):
            errors.append(f'model_args: {self.model_args!r} is not a mapping such as {{"hidden_sizes": [128, 128]}}')
        if self.head == []:
            errors.append("head: names no module: name those that compute the logits, or leave it out")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            errors.append(f"dropout: {self.dropout} must be at least 0 and under 1")
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            errors.append(f"image_size: {self.image_size} must be one side, or height and width, in pixels")
        if (self.image_mean is None) != (self.image_std is None):
            errors.append("image_mean and image_std belong together: give both or neither")
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None and len(getattr(self, name)) not in (1, 3):
                errors.append(f"{name}: {getattr(self, name)} must hold 1 number, or 3 (one for each channel)")
            elif not all(-math.inf < number < math.inf for number in getattr(self, name) or []):
                errors.append(f"{name}: {getattr(self, name)} must be finite")
        if self.image_std is not None and min(self.image_std) <= 0:
            errors.append(f"image_std: {self.image_std} must be positive")
        return errors

    def _check_input(self, model_args: dict[str, Any]) -> list[str]:
        """The errors in the size, channels and classes of `model_args`."""
        errors: list[str] = []
        if "num_classes" in model_args:
            message = "model_args: num_classes is the number of the data's classes: leave it out"
            rest = {key: value for key, value in model_args.items() if key != "num_classes"}
            errors.append(Advice(message, {"model_args": rest or None}))
        for key in [key for key in _OWN_SIZES + _OWN_CHANNELS if key in model_args]:
            value, rest = model_args[key], {name: v for name, v in model_args.items() if name != key}
            if key in _OWN_CHANNELS and value not in (1, 3):
                message = f"model_args: {key}: {value}: images are read with 1 channel (grey) or 3 (RGB): leave it out"
                errors.append(Advice(message, {"model_args": rest or None}))
            elif key in _OWN_SIZES and not _is_size(value):
                errors.append(f"model_args: {key}: {value!r} must be one side, or height and width, in pixels")
            elif key in _OWN_SIZES and self.image_size and _as_size(value) != _as_size(self.image_size):
                message = f"model_args: {key}: {value} contradicts image_size: {self.image_size}: leave it out"
                errors.append(Advice(message, {"model_args": rest or None}))
        return errors


def _as_size(value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value]
    return (sides[0], sides[-1])


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value]
    return len(sides) in (1, 2) and all(type(side) is int and side > 0 for side in sides)


def local_model(name: str) -> Path | None:
    """The folder of a saved model: `name` itself, or `model/` in it (a run's folder); None if it is neither."""
    path = as_path(name)
    return next((folder for folder in (path, path / "model") if os.path.isfile(folder / "config.json")), None)


def weights_file(name: str) -> Path | None:
    """The file of weights of this name, or None."""
    path = as_path(name)
    return path if path.suffix in WEIGHTS_SUFFIXES and os.path.isfile(path) else None


def as_path(name: str) -> Path:
    """Any text as a path; `Path.expanduser` would raise for the home of an unknown user."""
    return Path(os.path.expanduser(name))
