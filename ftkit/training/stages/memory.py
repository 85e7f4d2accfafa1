"""Whether the steps of a plan fit into memory: estimated from the sizes of tensors before the first of them."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ftkit.compat.torch import storage_of
from ftkit.config.arguments.training import TrainingArguments, sharding_of
from ftkit.errors import UserError, as_options
from ftkit.memory import available_memory
from ftkit.models.first_pass import FAILURES
from ftkit.training.stages.planning import Plan, PreparedStage

_TRIED = 2  # images: BatchNorm takes no batch of one
_PREFETCHED = 2  # batches that each of torch's workers holds ready
_PIXEL, _USUAL = 2 * 3 * 4, 1000  # bytes of a pixel in colour, as numbers and a copy; and in a step of a usual network
_MOST = 1e5  # bytes of a pixel in a step: more than any network takes
_MOMENTS = 2  # numbers that AdamW keeps for each parameter; other optimizers keep less


class Cost(NamedTuple):
    """The least memory that a model takes, in bytes.

    Attributes:
        training: for an image in training: the tensors kept for the backward pass, and the largest layer's gradients.
        forward: for an image in an evaluation: the input and output of the largest layer.
        update: for the gradients and the optimizer's state.
    """

    training: float
    forward: float
    update: float


class Pool(NamedTuple):
    """The main memory, or a GPU's, in bytes.

    Attributes:
        free: the free memory, less a tenth.
        fixed: the memory of a stage that does not depend on the batch size.
        training: the memory of an image in training.
        forward: the memory of an image in an evaluation.
    """

    free: float
    fixed: float
    training: float
    forward: float

    def fits(self, batch: int, one: float) -> bool:
        """Whether a batch fits, at `one` bytes per image."""
        return self.fixed + batch * one <= self.free

    def fitting(self, one: float) -> int:
        """A batch size, a power of two, that fits well."""
        return _power_of_two((self.free - self.fixed) / max(one, 1) / 1.5)


def check_memory(plan: Plan) -> None:
    """Refuse a plan whose steps or evaluations take more memory than is free.

    The estimate is a lower bound, from a forward pass of tensors without content: measured steps took 1.0 to 1.9 times
    as much.

    Raises:
        UserError: a stage cannot fit; the message names the batch size, or the image size, that fits.
    """
    for prepared in plan.stages:
        _check_stage(plan, prepared)


def check_image_size(size: tuple[int, int] | None, args: TrainingArguments) -> None:
    """Check that images of the size (H, W) that is asked for, if one is, fit, before a model or an image is made.

    Raises:
        UserError: they do not fit; the message names an image size that does.
    """
    if size is not None:
        pool, pixels = Pool(0.9 * available_memory(), 0, 0, 0), math.prod(size)
        batch = args.per_device_train_batch_size * _USUAL * pixels
        _check_least(pool, (3, *size), "two images", _TRIED * _PIXEL * pixels, batch)


def check_first_images(model: nn.Module, shape: tuple[int, int, int], args: TrainingArguments) -> None:
    """Check, before it runs, that the first pass of two images (C, H, W) fits into main memory.

    Raises:
        UserError: it does not fit; the message names an image size that fits, in training too.
    """
    if _fit_anyway(model, shape, _TRIED):
        return
    try:
        cost = cost_of(model, shape, {name for name, _ in model.named_parameters()})
    except FAILURES:  # the model does not take such images: the first pass reports it
        return
    weights = sum(parameter.nbytes for parameter in model.parameters())
    pool = Pool(0.9 * available_memory(), 2 * weights, cost.training, cost.forward)  # a copy, and gradients
    batch = max(args.per_device_train_batch_size * cost.training, args.per_device_eval_batch_size * cost.forward)
    _check_least(pool, shape, "two images", _TRIED * cost.training, batch)


def check_evaluation(model: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device) -> None:
    """Check that a batch of images of a shape (C, H, W) fits into the main memory, before they are decoded.

    Raises:
        UserError: it does not fit; the message names a `batch_size` that does.
    """
    one: float = math.prod(shape)  # a GPU computes batches in parts
    if device.type == "cpu":
        try:
            one = cost_of(model, shape, set()).forward
        except FAILURES:  # the model does not take such images, as the first batch shows
            return
    pool = Pool(0.9 * available_memory(), 0, 0, one)
    if pool.fits(batch, one):
        return
    size = f"of {_by(shape)} pixels takes at least {_gb(batch * one)} of the {_gb(pool.free)} of memory that are free"
    if one > pool.free:
        raise UserError(f"memory: a batch of {batch} images {size}, and no single one fits: take a smaller model")
    fix = {"batch_size": min(pool.fitting(one), batch - 1)}
    raise UserError(f"memory: a batch of {batch} images {size}: set {as_options(fix)}", fix=fix)


def _fit_anyway(model: nn.Module, shape: tuple[int, int, int], images: int) -> bool:
    """Whether a step with so many images (C, H, W) fits into the main memory, whatever the model does with them."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return (2 + _MOMENTS) * weights + images * math.prod(shape[1:]) * _MOST <= 0.9 * available_memory()


def _check_stage(plan: Plan, prepared: PreparedStage) -> None:
    args, train, shape = prepared.args, plan.images["train"], _shape(plan)
    evaluated = [
        len(rows) for split, rows in plan.images.items() if split != "train" or prepared.stage.kind.head_alone
    ]
    batch = 1 if args.auto_find_batch_size else min(args.per_device_train_batch_size, len(train))
    largest = min(args.per_device_eval_batch_size, max(evaluated))
    workers = 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or _PREFETCHED)
    if args.device.type == "cpu" and _fit_anyway(plan.classifier.model, shape, workers * max(batch, largest)):
        return
    pools = _pools(plan, prepared)
    for pool in pools:
        one, most = max(pool.training, pool.forward), max(batch * pool.training, largest * pool.forward)
        _check_least(pool, shape, "one image", one, most)
    needed: list[str] = []
    fix: dict[str, int] = {}
    for pool in pools:
        for what, count, key, one in (
            ("a step with", batch, "per_device_train_batch_size", pool.training),
            ("an evaluation of", largest, "per_device_eval_batch_size", pool.forward),
        ):
            if not pool.fits(count, one):
                size = _gb(pool.fixed + count * one)
                needed.append(f"{what} {count} images takes at least {size} of memory, and {_gb(pool.free)} are free")
                fix[key] = min(pool.fitting(one), fix.get(key, count))
    if fitting := fix.get("per_device_train_batch_size"):
        fix["gradient_accumulation_steps"] = math.ceil(batch / fitting) * args.gradient_accumulation_steps
    if needed:
        keys = ", ".join(f"{key}: {value}" for key, value in fix.items())
        raise UserError(
            f"memory: with {_by(shape)} pixels, {' and '.join(needed)}: set {keys}, or a smaller image_size", fix=fix
        )


def _pools(plan: Plan, prepared: PreparedStage) -> list[Pool]:
    """What a stage takes of the main memory, and of the GPU's if it has one."""
    args, model, images = prepared.args, plan.classifier.model, plan.images["train"]
    cost = cost_of(model, _shape(plan), prepared.trained)
    half = 2 if args.bf16 or args.fp16 else 1
    training = 0.0 if args.gradient_checkpointing else cost.training / half
    update = cost.update / (args.world_size if sharding_of(vars(args)) else 1)
    ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or _PREFETCHED)
    waiting = (1 + ahead) * math.prod(images.shape) if images.engine == "stream" else 0
    main = 0.9 * available_memory()
    if args.device.type == "cpu":
        return [Pool(main, update, training + waiting, cost.forward / half + waiting)]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    free, _ = torch.accelerator.get_memory_info(args.device)
    # Evaluations that do not fit a GPU are computed in parts.
    return [Pool(main, 0, waiting, waiting), Pool(0.9 * free, update + weights, training, 0)]


def _shape(plan: Plan) -> tuple[int, int, int]:
    """The shape of the model's input: for a model of three channels, grey images become colour images."""
    channels, height, width = plan.images["train"].shape
    return max(channels, plan.classifier.channels), height, width


def _check_least(pool: Pool, shape: tuple[int, int, int], images: str, size: float, batch: float) -> None:
    """Raise a `UserError` unless the weights and `images`, which take `size`, fit; a whole batch takes `batch`."""
    if pool.fixed > pool.free:
        raise UserError(
            f"model: its weights, gradients and the optimizer's state take {_gb(pool.fixed)} of memory, and "
            f"{_gb(pool.free)} are free: take a smaller model, or train less of it, as with method: lora or "
            "linear_probe; those of an mlp or rnn also depend on image_size"
        )
    if pool.fixed + size > pool.free:
        side = _power_of_two(math.sqrt(pool.free / (pool.fixed + batch) / 1.5) * min(shape[1:]))
        raise UserError(
            f"image_size: a step with {images} of {_by(shape)} pixels takes at least {_gb(pool.fixed + size)} of "
            f"memory, and {_gb(pool.free)} are free: set a smaller one, such as {side}, or take a smaller model",
            fix={"image_size": side},
        )


def cost_of(model: nn.Module, shape: tuple[int, int, int], trained: set[str]) -> Cost:
    """The memory that a model takes for images of a shape (C, H, W) if the parameters named `trained` train.

    A copy of the model runs, without its weights, since a forward pass may change the module.
    """
    try:
        training, forward = _sizes(_copy(model, trained, "meta"), torch.zeros(_TRIED, *shape, device="meta"))
    except (RuntimeError, TypeError, ValueError):  # a model whose code looks at values
        training, forward = _sizes(_copy(model, trained, None), torch.zeros(_TRIED, *shape))
    named = model.named_parameters(remove_duplicate=False)
    moving = {id(parameter): parameter.nbytes for name, parameter in named if name in trained}
    update = (1 + _MOMENTS) * sum(moving.values())
    return Cost((training + (2 * forward if trained else 0)) / _TRIED, forward / _TRIED, update)


def _copy(model: nn.Module, trained: set[str], device: str | None) -> nn.Module:
    """A copy of a model in which the parameters named `trained` train; on another device, its tensors are empty."""
    memo: dict[int, Any] = {}
    if device is not None:
        memo = {id(buffer): torch.empty_like(buffer, device=device) for buffer in model.buffers()}
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)
    copied = copy.deepcopy(model, memo).requires_grad_(False).train()
    for name, parameter in copied.named_parameters(remove_duplicate=False):
        if name in trained:
            parameter.requires_grad_()
    return copied


def _sizes(model: nn.Module, pixels: torch.Tensor) -> tuple[int, int]:
    """The bytes that a forward pass keeps for the backward pass, and the most at a layer without children."""
    weights = {storage_of(tensor) for tensor in [*model.parameters(), *model.buffers()]}
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

    for module in model.modules():
        if not [*module.children()]:
            module.register_forward_hook(see)
    noted = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.random.fork_rng(devices=[]), _LeanAttention(), noted:
        model(pixel_values=pixels)
    return sum(kept.values()), largest


class _LeanAttention(TorchFunctionMode):
    """Keeps attention from allocating its (L, L) matrix: real devices do not, but the meta device would."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, value = args[0], args[2] if len(args) > 2 else (kwargs or {})["value"]
        return value.mean(-2, keepdim=True).expand(*query.shape[:-1], value.shape[-1])


def _power_of_two(value: float) -> int:
    """The largest power of two that is at most `value`; at least 1."""
    return 1 << max(math.floor(math.log2(max(value, 1))), 0)


def _by(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
