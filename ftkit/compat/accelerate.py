"""Private and undocumented names of accelerate."""

import importlib.util
import sys

from accelerate.data_loader import DataLoaderAdapter
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader

__all__ = [
    "clear_device_cache",  # the public `release_memory` also collects garbage
    "forget_deepspeed",
    "forget_preparation",
    "inner_loader",
    "should_reduce_batch_size",  # whether an error means that memory is too small
    "skip_lomo",
]


def forget_deepspeed() -> None:
    """Let the next `Trainer` set up DeepSpeed: accelerate accepts only one plugin per process."""
    AcceleratorState._reset_state()


def forget_preparation(model: nn.Module) -> None:
    """Remove the mark of a prepared model: with it `prepare` adds neither autocast nor `torch.compile`."""
    vars(model).pop("_is_accelerate_prepared", None)


def inner_loader(loader: DataLoader) -> DataLoader:
    """The loader that has the worker processes, which accelerate may have wrapped."""
    return loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader


def skip_lomo() -> None:
    """Keep accelerate from searching `sys.path` for a missing `lomo_optim` three times a step."""
    if importlib.util.find_spec("lomo_optim") is None:
        sys.modules["lomo_optim"] = None  # type: ignore[assignment]  # documented, and missing in the stubs
