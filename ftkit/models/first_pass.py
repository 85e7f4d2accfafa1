"""A trial forward and backward pass with two images, before anything is decoded, trained or written.

It runs on copies of the model with a forked random state, so that it has no side effects.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ftkit.compat.accelerate import should_reduce_batch_size
from ftkit.errors import UserError, listed

logger = logging.getLogger(__name__)
Size = tuple[int, int]  # height and width in pixels
# What models and image processors raise for images of a size or shape that they cannot take: torch RuntimeError,
# transformers ValueError, timm AssertionError; and the others for contradictory configs.
FAILURES = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, AttributeError, ArithmeticError)
# Pixels: candidate sizes that suit most patches and windows.
_BASES = (2, 4, 7, 8, 14, 16, 28, 32)
_SQUARES = (56, 64, 84, 96, 112, 128, 160, 192, 224, 256, 288, 320, 336, 384, 448, 512, 640)


def check_first_pass(
    name: str, model: Any, pixel_values: torch.Tensor, own: list[Size] | None, again: Callable[[Size], nn.Module]
) -> None:
    """Check that `model` can be trained on images of this size, and uses all of their pixels.

    Args:
        name: the model's name, for messages.
        model: the model, on the CPU, in float32.
        pixel_values: float (2, C, H, W), two of the images, normalised.
        own: the model's own sizes, to recommend first; None if `image_size` overrides its own size.
        again: builds the same model for another size; raises a `UserError` if that is impossible.

    Raises:
        UserError: the size or the weights do not work; the message recommends a size that was tried and works.
    """
    height, width = pixel_values.shape[2:]
    with torch.random.fork_rng(devices=[]):
        problem = why_not(model, pixel_values, name)
        if problem is None:
            return

        def works(size: Size) -> bool:
            with _quiet(), contextlib.suppress(UserError):
                return why_not(again(size), _noise(pixel_values, size)) is None
            return False

        found = next(filter(works, _other_sizes((height, width), own or [])), None)
    if found is None and own is None:
        raise UserError(f"image_size: {name} {problem}: leave image_size out", fix={"image_size": None})
    if found is None:
        raise UserError(f"model: {name} {problem}, and no other size that was tried works: use another model")
    raise UserError(
        f"image_size: {name} {problem}: set image_size to {' '.join(map(str, dict.fromkeys(found)))}, "
        f"{'the size it was made for' if found in (own or []) else 'a larger size that it takes'}",
        fix={"image_size": found[0] if found[0] == found[1] else list(found)},
    )


def check_channels(name: str, channels: int) -> None:
    """Raise a `UserError` unless a model takes grey or RGB images."""
    if channels not in (1, 3):
        raise UserError(
            f"model: {name} takes images of {channels} channels, but ftkit reads grey images (1) and RGB (3): use "
            "another model"
        )


def warn_of_grey(name: str) -> None:
    """Warn that a model that is not one of ftkit's own takes only grey images."""
    logger.warning(
        "%s takes only grey images, so a plain pipeline, which feeds RGB, cannot run it: leave out in_chans: 1 or "
        "num_channels: 1 to repeat grey images in three channels instead",
        name,
    )


def check_size(name: str, model: Any, channels: int, size: Size) -> None:
    """Check that a saved model takes the output of its image processor.

    Raises:
        UserError: it does not.
    """
    check_channels(name, channels)
    if (why := refusal(model, torch.zeros(1, channels, *size))) is not None:
        raise UserError(
            f"model: {name} cannot take images of {size[0]} x {size[1]} pixels, the output of its image processor: "
            f"{why}: correct its preprocessor_config.json, or train it again"
        )


@torch.no_grad()
def refusal(model: nn.Module, pixel_values: torch.Tensor) -> str | None:
    """Why a forward pass of these images, on a copy of the model, fails; None if it works."""
    try:
        forward(copy.deepcopy(model).eval(), pixel_values)
    except FAILURES as error:
        return reason(error)
    return None


def why_not(model: Any, pixel_values: torch.Tensor, name: str = "the model") -> str | None:
    """Why `model` cannot be trained on images float (N, C, H, W), as the end of a sentence; None if it can.

    Raises:
        UserError: the logits are not finite.
    """
    height, width = pixel_values.shape[2:]
    tried, images = copy.deepcopy(model), f"images of {height} x {width} pixels"
    try:
        with torch.no_grad():
            logits = forward(tried.eval(), pixel_values)
        if not logits.isfinite().all():
            raise _not_finite(name, model)
        rows, columns, patches = _unread(tried, pixel_values[:1])
        if (rows or columns) and patches:
            return f"would cut off {rows} rows and {columns} columns of {images}, which its patches do not divide"
        forward(tried.train().requires_grad_(), pixel_values).square().mean().backward()
    except FAILURES as error:
        return f"cannot take {images} ({reason(error)})"
    if logits.shape != (len(pixel_values), model.config.num_labels):
        return f"gives logits of shape {tuple(logits.shape)} for {len(pixel_values)} {images}"
    if rows or columns:
        logger.info("  the model ignores %d rows and %d columns of %s", rows, columns, images)
    return None


def forward(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits of images."""
    return model(pixel_values=pixel_values).logits


def reason(error: Exception) -> str:
    """The message of a library's error in one line; an out-of-memory error is raised again."""
    if should_reduce_batch_size(error):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def _unread(model: Any, pixel_values: torch.Tensor) -> tuple[int, int, bool]:
    """The number of border rows and columns that do not affect the logits, and whether the first layer makes patches.

    The gradient of the logits with respect to these pixels is zero. To keep it from being zero elsewhere, the image is
    noise, and parameters that are all zero, such as those of new heads, are set to random values.
    """
    first: list[bool] = []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.requires_grad_(False).parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[2:] == pixel_values.shape[2:]:
            first.append(layer.kernel_size == layer.stride != (1, 1))

    hooks = [part.register_forward_pre_hook(note) for part in model.modules() if isinstance(part, nn.Conv2d)]
    pixels = _noise(pixel_values, pixel_values.shape[2:]).requires_grad_()  # type: ignore[arg-type]
    logits = forward(model, pixels)
    for hook in hooks:
        hook.remove()
    if not logits.requires_grad:
        return 0, 0, False
    (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
    gradient = pixels.grad.abs().amax((0, 1)) > 0  # type: ignore[union-attr]
    if not gradient.any():
        return 0, 0, False
    rows, columns = (_at_the_ends(gradient.any(axis)) for axis in (1, 0))
    return rows, columns, not first or first[0]


def _at_the_ends(read: torch.Tensor) -> int:
    places = read.nonzero()
    return len(read) - 1 - int(places[-1] - places[0])


def _noise(like: torch.Tensor, size: Size) -> torch.Tensor:
    """Images of noise (N, C, H, W), as many and of as many channels as `like`."""
    return torch.randn(*like.shape[:2], *size, generator=torch.Generator().manual_seed(0))


def _not_finite(name: str, model: nn.Module) -> UserError:
    tensors = model.state_dict()
    broken = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        return UserError(
            f"model: {len(broken)} of the {len(tensors)} tensors of {name} hold NaN or infinity "
            f"({listed(broken)}), so its weights are broken: use other weights"
        )
    return UserError(
        f"model: the logits of {name} for the first images are not finite, though its weights are: check image_mean "
        "and image_std, or use other weights"
    )


def _other_sizes(size: Size, own: list[Size]) -> list[Size]:
    """The sizes to try: a model's own, those above `size` in its aspect ratio, and squares."""
    rounded = {(-(-size[0] // base) * base, -(-size[1] // base) * base) for base in _BASES}
    squares = [(side, side) for side in _SQUARES if side > max(size)]
    sizes = [*own, *sorted(rounded, key=lambda sides: sides[0] * sides[1]), *squares]
    return [other for other in dict.fromkeys(sizes) if other != size and max(other) <= max(_SQUARES)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide all messages but errors while candidate sizes are tried."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
