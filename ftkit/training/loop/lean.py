"""Changes that make a stage faster, undone when it ends."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel

from ftkit.compat.accelerate import skip_lomo
from ftkit.models.anatomy import is_convolutional
from ftkit.precision import remove_autocast


@contextmanager
def lean(model: Any, sharded: bool, checkpointing: bool) -> Iterator[None]:
    """Inside the block, garbage collection skips existing objects, and no step looks for missing packages.

    Convolution weights and their gradients are channels-last, as the images are.

    Args:
        model: the model to train. On exit it is contiguous again, without the stage's autocast and checkpointing.
        sharded: whether a sharded copy is trained instead of `model`.
        checkpointing: whether the `Trainer` turns activation checkpointing on.
    """
    skip_lomo()
    gc.freeze()  # the Trainer starts with a garbage collection, which would visit every object of the libraries
    if is_convolutional(model) and not sharded and not isinstance(model, PeftModel):  # DoRA needs contiguous weights
        model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
        remove_autocast(model)
        if checkpointing:
            model.activation_checkpointing_disable()
        gc.unfreeze()
