"""What an image processor does to pixels: resizing once, while decoding; normalising on every batch."""

import json
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import MaybeToTensor, ToNumpy
from torchvision.transforms import Normalize, PILToTensor, ToTensor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor


class Normalize8Bit:
    """uint8 (B, C, H, W) -> float32 with `(x / 255 - mean) / std` by channel; one channel spreads over three."""

    def __init__(self, mean: list[float], std: list[float]):
        self.scale = (1 / (255 * torch.tensor(std))).view(1, -1, 1, 1)
        self.offset = (-torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.scale.device != images.device:
            self.scale, self.offset = self.scale.to(images.device), self.offset.to(images.device)
        return torch.addcmul(self.offset, images.to(torch.float32), self.scale)


def normalization(processor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel that an image processor takes, for pixels in 0..1."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return list(processor.data_config["mean"]), list(processor.data_config["std"])
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255
    mean, std = ([0.0], [1.0]) if not processor.do_normalize else (processor.image_mean, processor.image_std)
    return [value / factor for value in mean], [value / factor for value in std]


def normalizer(processor, channels: int) -> Normalize8Bit:
    """What `processor` does to decoded pixels, for a model that takes 1 or 3 channels."""
    mean, std = (values[:channels] for values in normalization(processor))
    return Normalize8Bit(mean, std)


def channel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel of uint8 (N, C, H, W), for pixels in 0..1, rounded to 4 places."""
    counts = np.stack([torch.bincount(images[:, c].flatten(), minlength=256).numpy() for c in range(images.shape[1])])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 1e-8))
    return [round(float(m), 4) for m in mean], [max(round(float(s), 4), 1e-4) for s in std]


def pixel_geometry(processor) -> Callable[[list[Image.Image]], np.ndarray]:
    """The part of an image processor before rescaling: a list of n images -> uint8 (n, C, H, W).

    Taking it from the processor that is saved with the model makes training see what inference will see. Whether the
    processor leaves images of a size alone is asked once for each size, with noise.
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        to_tensor = (ToTensor, MaybeToTensor, ToNumpy, PILToTensor, Normalize)
        steps = [step for step in processor.val_transforms.transforms if not isinstance(step, to_tensor)]

        def transform(images: list[Image.Image]) -> np.ndarray:
            for step in steps:
                images = [step(image) for image in images]
            return _as_arrays(images)
    else:

        def transform(images: list[Image.Image]) -> np.ndarray:
            plain = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
            return processor(images, **plain, return_tensors="pt")["pixel_values"].to(torch.uint8).numpy()

    unchanged: dict[tuple[str, tuple[int, int]], bool] = {}

    def geometry(images: list[Image.Image]) -> np.ndarray:
        kinds = {(image.mode, image.size) for image in images}
        for mode, size in kinds - unchanged.keys():
            noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8)
            probe = [Image.fromarray(noise.squeeze(-1) if mode == "L" else noise)]
            unchanged[mode, size] = np.array_equal(transform(probe), _as_arrays(probe))
        if len(kinds) == 1 and unchanged[kinds.pop()]:
            return _as_arrays(images)
        return transform(images)

    return geometry


def _as_arrays(images: list[Image.Image]) -> np.ndarray:
    arrays = np.stack([np.asarray(image) for image in images])
    return arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2)


def geometry_key(processor) -> str:
    """What of a processor shapes the pixels: all but the normalisation."""

    def strip(value):
        if isinstance(value, dict):
            return {
                k: strip(v) for k, v in sorted(value.items()) if k not in ("mean", "std", "image_mean", "image_std")
            }
        return value

    return json.dumps(strip(processor.to_dict()), default=str)
