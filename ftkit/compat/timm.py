"""Undocumented names of timm."""

import inspect

from timm.data.transforms_factory import transforms_imagenet_train


def training_transform_options() -> set[str]:
    """The options of timm's training transform; `create_transform`, which calls it, ignores unknown ones."""
    return set(inspect.signature(transforms_imagenet_train).parameters)
