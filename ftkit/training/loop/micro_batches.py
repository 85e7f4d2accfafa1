"""The batches of an optimizer step, in parts if one does not fit into memory: the gradient is the same."""

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
    """Set the `weight` of each batch of an optimizer step, a factor of its mean loss: every image counts the same.

    Args:
        batches: the batches of this process, with a `weight` if the batches of the processes differ in size.
        processes: number of processes that average their gradients.
    """
    images = [round(len(batch["index"]) * processes / float(batch.get("weight", 1.0))) for batch in batches]
    for batch in batches:
        batch["weight"] = len(batch["index"]) * processes / sum(images)


def in_parts(inputs: Inputs, parts: int) -> Iterator[tuple[Inputs, float]]:
    """Cut a batch into nearly equal parts, each with its share of the batch."""
    size = len(inputs["pixel_values"])
    pieces = {name: values.tensor_split(min(parts, size)) for name, values in inputs.items()}
    for images, labels in zip(pieces["pixel_values"], pieces["labels"], strict=True):
        yield {"pixel_values": images, "labels": labels}, len(images) / size


def run_in_parts(run: Callable[[Inputs], Any], inputs: Inputs, parts: int) -> tuple[list[tuple[Any, float]], int]:
    """Run each part of a batch without gradients: the results, each with its share, and the number of parts.

    Args:
        inputs: a batch with `pixel_values` and `labels`.
        parts: number of parts to try first; doubled while memory is too small.

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
    """The number of parts to cut batches into, so that every process has memory for a part: 1, 2, 4, ….

    The model and the state of the random numbers do not change.

    Args:
        model: the model, not wrapped, so that no process waits for another.
        inputs: the first batch, on the device.
        backward: function that runs forward and backward on a part.
        optimizer: the optimizer; memory for its state is reserved if it has taken no step yet.

    Raises:
        UserError: not even one image fits.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and not optimizer.state]
    parts, size, fits = 1, len(inputs["pixel_values"]), False

    def step(part: Inputs) -> None:
        kept = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # Adam's two moments
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
            "  batches of %d do not fit into memory: each is computed in %d parts, for one optimizer step", size, parts
        )
    return parts


def _fits(model: nn.Module, part: Inputs, backward: Callable[[Inputs], None]) -> bool:
    device = part["pixel_values"].device
    try:
        # The default, all devices, would initialise every GPU of the machine.
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
