"""The batches of an optimizer step, and what does not fit into memory in parts that do: the gradient is the same."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import gather_object, release_memory
from torch import nn

from ftkit.compat.accelerate import should_reduce_batch_size
from ftkit.errors import UserError

logger = logging.getLogger(__name__)
Inputs = dict[str, torch.Tensor]
_NOT_ONE = "not even one image fits into memory: take a smaller model or image_size"


def weigh(batches: list[dict[str, Any]], processes: int) -> None:
    """Give the batches of an optimizer step their `weight`, a factor of the mean loss: each image counts the same.

    Args:
        batches: of this process, each with a `weight` where it is not an equal part of those of all processes.
        processes: whose gradients are averaged.
    """
    images = [round(len(batch["index"]) * processes / float(batch.get("weight", 1.0))) for batch in batches]
    for batch in batches:
        batch["weight"] = len(batch["index"]) * processes / sum(images)


def in_parts(inputs: Inputs, parts: int) -> Iterator[tuple[Inputs, float]]:
    """Cut a batch into parts as equal as can be; with each its share of the batch."""
    size = len(inputs["pixel_values"])
    pieces = {name: values.tensor_split(min(parts, size)) for name, values in inputs.items()}
    for images, labels in zip(pieces["pixel_values"], pieces["labels"], strict=True):
        yield {"pixel_values": images, "labels": labels}, len(images) / size


def run_in_parts(run: Callable[[Inputs], Any], inputs: Inputs, parts: int) -> tuple[list[tuple[Any, float]], int]:
    """What `run`, without gradients, gives of each part of a batch, with its share; and how many parts there were.

    Args:
        inputs: with `pixel_values` and `labels`.
        parts: to begin with; twice as many, and so on, where memory is too small.

    Raises:
        UserError: not even one image fits.
    """
    size = len(inputs["pixel_values"])
    while True:
        try:
            return [(run(part), share) for part, share in in_parts(inputs, parts)], parts
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        release_memory()
        if parts >= size:
            raise UserError(_NOT_ONE)
        parts *= 2


def parts_that_fit(
    model: nn.Module, inputs: Inputs, backward: Callable[[Inputs], object], optimizer: torch.optim.Optimizer
) -> int:
    """Into how many parts batches must be cut so that every process has memory for one: 1, 2, 4, ….

    The model is left as it was, and so are the random numbers.

    Args:
        model: not wrapped, so that no process waits for another.
        inputs: the first batch, on the device.
        backward: forward and backward of a part.
        optimizer: will need memory for what it keeps, if it has taken no step yet.

    Raises:
        UserError: not even one image fits.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and not optimizer.state]
    parts, size, fits = 1, len(inputs["pixel_values"]), False

    def step(part: Inputs) -> None:
        kept = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # as an Adam does
        backward(part)
        del kept

    while not fits and parts < 2 * size:
        fits = _fits(model, next(in_parts(inputs, parts))[0], step)
        parts = parts if fits else 2 * parts
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    parts = max(gather_object([parts]))
    if parts >= 2 * size:
        raise UserError(_NOT_ONE)
    if parts > 1:
        logger.info(
            "  batches of %d do not fit into memory: each is taken in %d parts, with one step for all", size, parts
        )
    return parts


def _fits(model: nn.Module, part: Inputs, backward: Callable[[Inputs], None]) -> bool:
    device = part["pixel_values"].device
    try:
        # Of all devices, which is the default, every GPU of the machine would be woken up.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            backward(part)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        release_memory()
    return True
