"""Models that FSDP or DeepSpeed cut into pieces, while the rest of ftkit sees whole ones."""

import copy
from contextlib import nullcontext

import torch
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


def gather_into(model: nn.Module, sharded: nn.Module) -> None:
    """Give `model` the weights and buffers of its sharded copy, in every process."""
    with _gathered_by_deepspeed(list(sharded.parameters())), torch.no_grad():
        own = model.state_dict()
        for name, value in sharded.state_dict().items():
            own[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)


def _gathered_by_deepspeed(parameters: list[nn.Parameter]):
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)
