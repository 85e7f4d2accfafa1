"""Freezing the parameters that a stage does not train, and checking that they did not move."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ftkit.errors import UserError, listed
from ftkit.methods.adapter_kinds import hooks_of
from ftkit.methods.trainable import Train, kind_of
from ftkit.models.anatomy import BATCH_NORMS


@contextmanager
def only_training(model: nn.Module, trained: set[str], train: Train, train_batchnorm_stats: bool) -> Iterator[None]:
    """Within the block, only `trained` parameters get gradients, and frozen BatchNorms keep their running statistics.

    A BatchNorm's statistics move if all its parameters train and the kind of `train` says so (see `Trainable`), or
    always with `train_batchnorm_stats`. If the block ends without an error, every frozen tensor is compared with its
    value before.

    Raises:
        UserError: a frozen tensor has moved; the message names the modules.
    """
    hooks = []
    # By tensor, not by name: a shared tensor has several names.
    tensors = {id(parameter) for name, parameter in _all_parameters(model) if name in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in tensors)
    trained = trained | {name for name, parameter in _all_parameters(model) if id(parameter) in tensors}
    kind = kind_of(train)
    moving = {name for name, _ in model.named_buffers()} if kind.moves_buffers else set()
    for place, module in model.named_modules():
        if not isinstance(module, BATCH_NORMS):
            continue
        own = [f"{place}.{name}" for name, _ in module.named_parameters(recurse=False)]
        all_train = own and trained.issuperset(own)
        if kind.moves_buffers or train_batchnorm_stats or (all_train and kind.moves_statistics):
            moving |= {f"{place}.{name}" for name, _ in module.named_buffers()}
        else:
            # A hook, because the Trainer calls model.train() at every step.
            hooks.append(module.register_forward_pre_hook(_evaluate))
    if kind.needs_adapters:
        moving |= hooks_of(model).bookkeeping(model)
    before = digests(model, trained | moving)
    try:
        yield
        after = digests(model, trained | moving)
        moved = sorted({name.rpartition(".")[0] for name, digest in before.items() if after[name] != digest})
        if moved:
            raise UserError(f"{len(moved)} modules moved in a stage that froze them: {listed(moved, 10)}")
    finally:
        for hook in hooks:
            hook.remove()


def _all_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _evaluate(module: nn.Module, _inputs: tuple) -> None:
    if module.training:
        module.eval()


def digests(model: nn.Module, without: set[str]) -> dict[str, bytes]:
    """A hash of every parameter and persistent buffer except those in `without`."""
    return {
        name: hashlib.blake2b(_bytes(value), digest_size=16).digest()
        for name, value in model.state_dict().items()
        if name not in without
    }


def _bytes(value: torch.Tensor) -> memoryview:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
