"""Whether the steps of a plan fit into memory: estimated from the sizes of tensors before the first of them."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from ftkit.compat.torch import storage_of
from ftkit.config.arguments.training import sharding_of
from ftkit.errors import UserError
from ftkit.memory import available_memory
from ftkit.training.stages.planning import Plan, PreparedStage

_TRIED = 2  # images: BatchNorm takes no batch of one
_MOMENTS = 2  # numbers that AdamW keeps for each parameter; other optimizers keep less


class Cost(NamedTuple):
    """The least memory that a model takes, in bytes.

    Attributes:
        training: of an image in training, what the backward pass needs.
        forward: of an image in an evaluation, the input and output of the largest layer.
        update: of the gradients and the optimizer.
    """

    training: float
    forward: float
    update: float


def check_memory(plan: Plan) -> None:
    """Refuse a plan whose steps or evaluations take more memory than is free.

    The estimate is a lower bound: what a step keeps for its backward pass, gradients and the optimizer's state. It
    comes from a forward pass of tensors without content.

    Raises:
        UserError: a stage cannot fit; the message names the batch size, or the image size, that can.
    """
    for prepared in plan.stages:
        _check_stage(plan, prepared)


def _check_stage(plan: Plan, prepared: PreparedStage) -> None:
    args, train = prepared.args, plan.images["train"]
    on_cpu = args.device.type == "cpu"
    free = available_memory() if on_cpu else torch.accelerator.get_memory_info(args.device)[0]
    cost = cost_of(plan.classifier.model, train.shape, prepared.trained)
    if args.bf16 or args.fp16:
        cost = Cost(cost.training / 2, cost.forward / 2, cost.update)
    update = cost.update / (args.world_size if sharding_of(vars(args)) else 1)
    weights = 0 if on_cpu else sum(parameter.nbytes for parameter in plan.classifier.model.parameters())
    batch = 1 if args.auto_find_batch_size else min(args.per_device_train_batch_size, len(train))
    one = 0.0 if args.gradient_checkpointing else cost.training
    what, room = f"{'×'.join(map(str, train.shape))} pixels", free - update - weights
    if max(one, cost.forward) > room:
        raise _too_large(train.shape, update + weights + max(one, cost.forward), free)
    if batch * one > room:
        fitting = _power_of_two(room / one)
        steps = math.ceil(args.per_device_train_batch_size / fitting) * args.gradient_accumulation_steps
        raise UserError(
            f"per_device_train_batch_size: a step with {batch} images of {what} takes at least "
            f"{_gb(update + weights + batch * one)} of memory, and {_gb(free)} are free: set it to {fitting}, and "
            f"gradient_accumulation_steps to {steps}, for the same updates; or set a smaller image_size",
            fix={"per_device_train_batch_size": fitting, "gradient_accumulation_steps": steps},
        )
    batch = min(args.per_device_eval_batch_size, max(map(len, plan.images.values())))
    if on_cpu and batch * cost.forward > room:  # a GPU says so in time, and the batch is computed in parts
        fitting = _power_of_two(room / cost.forward)
        raise UserError(
            f"per_device_eval_batch_size: an evaluation of {batch} images of {what} at once takes at least "
            f"{_gb(update + batch * cost.forward)} of memory, and {_gb(free)} are free: set it to {fitting}, or set a "
            "smaller image_size",
            fix={"per_device_eval_batch_size": fitting},
        )


def _too_large(shape: tuple[int, int, int], needed: float, free: float) -> UserError:
    """The error for a step that does not fit with a single image."""
    side = _power_of_two(math.sqrt(free / needed / 2) * min(shape[1:]))
    return UserError(
        f"image_size: a step with one image of {'×'.join(map(str, shape))} pixels takes at least {_gb(needed)} of "
        f"memory, and {_gb(free)} are free: set a smaller one, such as {side}, or take a smaller model",
        fix={"image_size": side},
    )


def cost_of(model: nn.Module, shape: tuple[int, int, int], trained: set[str]) -> Cost:
    """The memory that a model takes for images of a shape (C, H, W) if the parameters named `trained` train.

    The model is not changed.
    """
    try:
        training, forward = _sizes(model, shape, trained, torch.device("meta"))
    except (RuntimeError, TypeError, ValueError):  # a model whose code looks at values
        training, forward = _sizes(model, shape, trained, None)
    moving = sum(model.get_parameter(name).nbytes for name in trained)
    return Cost(training / _TRIED, forward / _TRIED, (1 + _MOMENTS) * moving)


def _sizes(
    model: nn.Module, shape: tuple[int, int, int], trained: set[str], device: torch.device | None
) -> tuple[int, int]:
    """The bytes that a forward pass keeps for the backward pass, and the most at a layer without children.

    Args:
        device: the device of stand-ins for the model's tensors; None for the tensors themselves.
    """
    own: dict[str, Any] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    if device is not None:
        own = {name: torch.empty_like(tensor, device=device) for name, tensor in own.items()}
    for name in trained:
        own[name] = own[name].clone() if device is None else own[name]
        own[name].requires_grad_()
    pixels = torch.zeros(_TRIED, *shape, device=device)
    weights = {storage_of(tensor) for tensor in own.values()}
    kept: dict[int, int] = {}
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if storage_of(tensor) not in weights:
            kept[storage_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def see(module: nn.Module, given: Any, found: Any) -> None:
        nonlocal largest
        both = [*given, *(found if isinstance(found, (tuple, list)) else [found])]
        largest = max(largest, sum(some.nbytes for some in both if isinstance(some, torch.Tensor)))

    layers = [module for module in model.modules() if not [*module.children()]]
    hooks = [module.register_forward_hook(see) for module in layers]
    training = model.training
    try:
        model.train()
        noted = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.random.fork_rng(devices=[]), _LeanAttention(), noted:
            functional_call(model, own, kwargs={"pixel_values": pixels})
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sum(kept.values()), largest


class _LeanAttention(TorchFunctionMode):
    """Keeps attention from writing its (L, L) matrix, as on real devices: without content torch knows no better."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, value = args[0], args[2] if len(args) > 2 else (kwargs or {})["value"]
        return value.mean(-2, keepdim=True).expand(*query.shape[:-1], value.shape[-1])


def _power_of_two(value: float) -> int:
    """The largest power of two that is at most `value`; at least 1."""
    return 1 << max(math.floor(math.log2(max(value, 1))), 0)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
