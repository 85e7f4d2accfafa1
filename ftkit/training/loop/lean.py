"""What a stage changes in the process and the model for speed, and undoes when it ends."""

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
    """Within, no step spends time on garbage among the libraries' own objects, or on missing packages.

    Weights of convolutions are channels-last, as the images are, and so are their gradients.

    Args:
        model: to train; afterwards it is contiguous, without the autocast and checkpointing of this stage.
        sharded: whether a copy of it trains.
        checkpointing: whether the `Trainer` turns activation checkpointing on.
    """
    skip_lomo()
    gc.freeze()  # the Trainer starts with a collection, which would walk through every object of the libraries
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
