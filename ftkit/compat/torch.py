"""Private names of torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader


def end_workers(loader: DataLoader) -> None:
    """End the worker processes of a loader. Ended by the garbage collector, each would first wait for 5 seconds."""
    loader._iterator = None


def storage_of(tensor: torch.Tensor) -> int:
    """The identity of a tensor's storage, which views share; tensors without content have no address."""
    return tensor.untyped_storage()._cdata


def compute_in_float32(norm: nn.Module) -> None:
    """Let a BatchNorm with 16-bit weights compute in float32, and keep its buffers in their type.

    torch refuses statistics and weights of two types, and in 16 bits the running statistics would not change. No hook
    can do this: the weights are cast only for the forward pass, and DeepSpeed casts buffers by `_apply`.
    """
    vars(norm).update(forward=partial(_forward, norm), _apply=partial(_apply, norm))


def _forward(norm: nn.Module, images: torch.Tensor) -> torch.Tensor:
    own: dict[str, Any] = dict(norm._parameters)
    norm._parameters.update({name: value if value is None else value.float() for name, value in own.items()})
    try:
        return type(norm).forward(norm, images.float()).to(images.dtype)
    finally:
        norm._parameters.update(own)


def _apply(norm: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    own: dict[str, Any] = dict(norm._buffers)
    type(norm)._apply(norm, function, recurse)
    for name, buffer in own.items():
        now = norm._buffers[name]
        if now is not None and now.dtype != buffer.dtype:
            norm._buffers[name] = buffer.to(now.device)
    return norm
