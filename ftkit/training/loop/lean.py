"""What a stage does to the process and to its model for speed, and undoes when it ends."""

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
    """Within, the libraries spend no time of a step on garbage among themselves, or on packages that are missing.

    Weights of convolutions lie channels-last, as the images do, and gradients then lie as their weights.

    Args:
        model: to train; it is contiguous afterwards, and has nothing left around it that this stage's arguments added.
        sharded: whether it is a copy of it that trains.
        checkpointing: whether the `Trainer` turns activation checkpointing on.
    """
    skip_lomo()
    gc.freeze()  # the Trainer begins with a collection, which would go through every object of the libraries
    if is_convolutional(model) and not sharded and not isinstance(model, PeftModel):  # DoRA takes plain ones
        model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
        remove_autocast(model)
        if checkpointing:
            model.activation_checkpointing_disable()
        gc.unfreeze()
