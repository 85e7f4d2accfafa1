"""Models that FSDP or DeepSpeed shard over the processes, and buffers that all processes share.

A copy of the model is sharded and trains; at the end the original gets its weights.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from ftkit.compat.accelerate import forget_deepspeed
from ftkit.compat.torch import compute_in_float32
from ftkit.compat.trainer import HookedTrainer
from ftkit.models.anatomy import BATCH_NORMS, block_classes
from ftkit.training.checkpointing.saving import load_tensors

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def allow_another_trainer(args: TrainingArguments) -> None:
    """Let another `Trainer` of this process use DeepSpeed."""
    if args.deepspeed_plugin is not None:
        forget_deepspeed()


def train_a_copy(trainer: HookedTrainer) -> None:
    """Let FSDP or DeepSpeed, if one is on, shard and train a copy of the trainer's model.

    Its checkpoints hold whole weights, even if the launcher's file does not ask for them: `load_into` reads these.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.model = trainer.model_wrapped = _copy_to_shard(trainer.model)
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = block_classes(trainer.model)
        plugin.state_dict_config = plugin.optim_state_dict_config = None  # those of the type that is replaced
        plugin.set_state_dict_type("FULL_STATE_DICT")
    elif trainer.is_deepspeed_enabled:
        zero = trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_gather_16bit_weights_on_model_save"] = True


def predict_unsharded(trainer: HookedTrainer) -> None:
    """Turn FSDP and DeepSpeed off for a trainer that only predicts."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
        trainer.model.to(trainer.args.device)


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Compute the gradients of a loss as accelerate does, but without its checks if nothing scales or shards it."""
    if accelerator.distributed_type in _PLAIN and not accelerator.scaler:
        loss.backward()
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.backward(loss, scale_wrt_gas=False)  # the loss already has its weight in the step
    else:
        accelerator.backward(loss)


def _copy_to_shard(model: nn.Module) -> nn.Module:
    shard: Any = copy.deepcopy(model)
    # accelerate asks for these, and an image model raises.
    shard.get_input_embeddings = shard.get_output_embeddings = lambda: None
    for module in shard.modules():
        if isinstance(module, BATCH_NORMS):
            compute_in_float32(module)
    return shard


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first, such as the running statistics of BatchNorm.

    Each process updates them with its own images, and DDP broadcasts those of the first only at the next step. Using
    these, and not the mean over the processes, means that an evaluation between two steps changes nothing.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            shared = buffer.contiguous()
            dist.broadcast(shared, src=0)
            buffer.copy_(shared)


def load_into(original: nn.Module, checkpoint: Path) -> None:
    """Give the original the weights that its sharded copy had at a checkpoint.

    Raises:
        UserError: see `load_tensors`.
    """
    load_tensors(original, _state_for(original, load_file(checkpoint / SAFE_WEIGHTS_NAME)), checkpoint)


def gather_into(original: nn.Module, sharded: nn.Module) -> None:
    """Give the original the weights of its sharded copy, in every process, and the buffers of the first."""
    share_buffers(sharded)
    with _gathered_by_deepspeed(list(sharded.parameters())), torch.no_grad():
        gathered = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in sharded.state_dict().items()
        }
        original.load_state_dict(_state_for(original, gathered))


def _state_for(original: nn.Module, gathered: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors gathered from the sharded copy, in the types of the original.

    Frozen parameters, and buffers that the copy holds in another type, are the original's own: neither has changed.
    """
    own, buffers = original.state_dict(), dict(original.named_buffers())
    kept = {name for name, parameter in original.named_parameters() if not parameter.requires_grad}
    kept |= {name for name in buffers.keys() & gathered.keys() if gathered[name].dtype != buffers[name].dtype}
    return {name: own[name] if name in kept else value.to(own[name].dtype) for name, value in gathered.items()}


def _gathered_by_deepspeed(parameters: list[nn.Parameter]) -> AbstractContextManager:
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)
