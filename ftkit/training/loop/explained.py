"""Errors that torch raises in training, as messages that say how to avoid them."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments

from ftkit.errors import UserError


@contextmanager
def explained(args: TrainingArguments, images: int) -> Iterator[None]:
    """Turn errors of torch within the block into a `UserError` if the user can avoid them.

    Args:
        args: the stage's training arguments.
        images: number of images that the stage trains on.

    Raises:
        UserError: a BatchNorm gets a batch of one image, or `full_determinism` is on and an operation has no
            deterministic version.
    """
    try:
        yield
    except RuntimeError as error:
        if not args.full_determinism or "deterministic" not in str(error):
            raise
        raise UserError(
            f"full_determinism: {str(error).partition(',')[0]}: leave it out, or use another model; and --overwrite "
            "true to replace the run that has begun",
            fix={"full_determinism": None, "overwrite": True},
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise _batch_of_one(args, images) from error


def _batch_of_one(args: TrainingArguments, images: int) -> UserError:
    size, processes = args.per_device_train_batch_size, args.world_size
    rests = ((n, images % (n * processes)) for n in range(size, 1, -1))
    smaller = next((n for n, rest in rests if rest == 0 or rest >= 2 * processes), None)
    fix = f"set dataloader_drop_last: true or per_device_train_batch_size: {smaller}" if smaller else "add images"
    return UserError(
        f"the last of the {images:,} images makes a batch alone, and BatchNorm needs two: {fix}, and --overwrite "
        "true to replace the run that has begun",
        fix={"dataloader_drop_last": True, "overwrite": True} if smaller else None,
    )
