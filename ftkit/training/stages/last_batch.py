"""Checks the last batch of an epoch, which may hold a single image: BatchNorm needs several values per channel."""

from typing import Any

import torch
from transformers import TrainingArguments

from ftkit.errors import UserError
from ftkit.models.first_pass import FAILURES, forward, reason


def smallest_batch(args: TrainingArguments, images: int) -> int:
    """The number of images in the smallest batch that a process gets."""
    rest = 0 if args.dataloader_drop_last else images % (args.per_device_train_batch_size * args.world_size)
    return max(rest // args.world_size, 1) if rest else args.per_device_train_batch_size


def check_single_image(model: Any, pixel_values: torch.Tensor, args: TrainingArguments, images: int) -> None:
    """Check that a model can be trained on a batch of one image.

    Args:
        model: a copy of the model, set up as in training.
        pixel_values: float (1, C, H, W), normalised.
        args: the stage's training arguments.
        images: number of images that the stage trains on.

    Raises:
        UserError: it cannot, for example because of a BatchNorm of 1 x 1 features.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            forward(model.train(), pixel_values)
    except FAILURES as error:
        size, processes = args.per_device_train_batch_size, args.world_size
        rests = ((n, images % (n * processes)) for n in range(size, 1, -1))
        other = next((n for n, rest in rests if rest == 0 or rest >= 2 * processes), None)
        fix = {"dataloader_drop_last": True} if size > 1 else {"per_device_train_batch_size": other or 2}
        if other is None:
            fix["dataloader_drop_last"] = True
        settings = " and ".join(f"{key}: {str(value).lower()}" for key, value in fix.items())
        raise UserError(
            f"per_device_train_batch_size: {size}: the last of the {images:,} images is a batch of its own, but "
            f"BatchNorm needs two images ({reason(error)}): set {settings}"
            f"{f' or per_device_train_batch_size: {other}' if other and size > 1 else ''}",
            fix=fix,
        ) from error
