"""Models that several processes train: the same buffers in all, and whole ones where FSDP or DeepSpeed cut them."""

import copy
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


def copy_to_shard(model: nn.Module) -> nn.Module:
    """A copy that may be cut into pieces."""
    shard = copy.deepcopy(model)
    # accelerate asks for these, and a model of images refuses the answer.
    shard.get_input_embeddings = shard.get_output_embeddings = _no_embeddings
    return shard


def _no_embeddings() -> None:
    return None


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
        own = model.state_dict()
        for name, value in sharded.state_dict().items():
            own[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)


def _gathered_by_deepspeed(parameters: list[nn.Parameter]):
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)
