"""Private and undocumented names of accelerate."""

import importlib.util
import sys

from accelerate.data_loader import DataLoaderAdapter
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader

__all__ = [
    "clear_device_cache",  # without the garbage collection of the public `release_memory`
    "forget_deepspeed",
    "forget_preparation",
    "inner_loader",
    "should_reduce_batch_size",  # which errors mean that memory was too small
    "skip_lomo",
]


def forget_deepspeed() -> None:
    """Let the next `Trainer` set up DeepSpeed: accelerate accepts a plugin only for the first one of a process."""
    AcceleratorState._reset_state()


def forget_preparation(model: nn.Module) -> None:
    """Remove the mark of a prepared model, with which `prepare` would add neither autocast nor `torch.compile`."""
    vars(model).pop("_is_accelerate_prepared", None)


def inner_loader(loader: DataLoader) -> DataLoader:
    """The loader that has the worker processes: the one inside, where accelerate has wrapped it."""
    return loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader


def skip_lomo() -> None:
    """Spare accelerate its search for `lomo_optim`, three times a step through all of `sys.path`."""
    if importlib.util.find_spec("lomo_optim") is None:
        sys.modules["lomo_optim"] = None  # type: ignore[assignment]  # documented, and missing in the stubs
