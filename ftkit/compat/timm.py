"""Undocumented names of timm."""

import inspect

from timm.data.transforms_factory import transforms_imagenet_train
from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc

__all__ = [
    "resample_abs_pos_embed",  # (1, N, D), for architectures that do not resample when they load weights
    "resample_abs_pos_embed_nhwc",  # (1, H, W, D)
    "training_transform_options",
]


def training_transform_options() -> set[str]:
    """The options of timm's training transform; `create_transform`, which calls it, ignores unknown ones."""
    return set(inspect.signature(transforms_imagenet_train).parameters)
