"""Models that several processes train: the same buffers in all, and whole ones where FSDP or DeepSpeed cut them."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from ftkit.models.anatomy import BATCH_NORMS


def copy_to_shard(model: nn.Module) -> nn.Module:
    """A copy that may be cut into pieces, with weights of 16 bits while it trains.

    Its BatchNorms compute in float32: torch refuses statistics and weights of two types, and in 16 bits the running
    statistics would stand still.
    """
    shard = copy.deepcopy(model)
    # accelerate asks for these, and a model of images refuses the answer.
    shard.get_input_embeddings = shard.get_output_embeddings = _no_embeddings
    for module in shard.modules():
        if isinstance(module, BATCH_NORMS):
            module.forward, module._apply = partial(_forward, module), partial(_apply, module)
    return shard


def _forward(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    own = dict(module._parameters)
    module._parameters.update({name: value if value is None else value.float() for name, value in own.items()})
    try:
        return type(module).forward(module, images.float()).to(images.dtype)
    finally:
        module._parameters.update(own)


def _apply(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """As torch does it, but for the type of the buffers, which DeepSpeed would change."""
    own = dict(module._buffers)
    type(module)._apply(module, function, recurse)
    for name, buffer in own.items():
        if buffer is not None and module._buffers[name].dtype != buffer.dtype:
            module._buffers[name] = buffer.to(module._buffers[name].device)
    return module


def _no_embeddings() -> None:
    return None


def whole_state(model: nn.Module, gathered: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was gathered of the sharded copy, in the types of `model`.

    What is frozen is the model's own, and so are buffers that were rounded: neither has moved.
    """
    own, buffers = model.state_dict(), dict(model.named_buffers())
    kept = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kept |= {name for name in buffers.keys() & gathered.keys() if gathered[name].dtype != buffers[name].dtype}
    return {name: own[name] if name in kept else value.to(own[name].dtype) for name, value in gathered.items()}


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first, such as the running statistics of BatchNorm.

    Each process moves them with its own images, and DDP hands out those of the first only when training goes on. They
    are what it goes on with, so a look at the model between two steps changes nothing; their mean over the processes
    would.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            shared = buffer.contiguous()
            dist.broadcast(shared, src=0)
            buffer.copy_(shared)


def gather_into(model: nn.Module, sharded: nn.Module) -> None:
    """Give `model` the weights of its sharded copy, in every process, and the buffers of the first."""
    share_buffers(sharded)
    with _gathered_by_deepspeed(list(sharded.parameters())), torch.no_grad():
        gathered = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in sharded.state_dict().items()
        }
        model.load_state_dict(whole_state(model, gathered))


def _gathered_by_deepspeed(parameters: list[nn.Parameter]):
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)
