"""Errors that torch raises in training, as messages that say how to avoid them."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments

from ftkit.errors import UserError


@contextmanager
def explained(args: TrainingArguments) -> Iterator[None]:
    """Turn errors of torch within the block into a `UserError` if the user can avoid them.

    Raises:
        UserError: `full_determinism` is on and an operation has no deterministic version.
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
