"""What a stage trains, and the proof that the rest did not move."""

import fnmatch
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ftkit.errors import UserError, nearest
from ftkit.methods.adalora import is_bookkeeping
from ftkit.methods.plan import Train
from ftkit.models.anatomy import BATCH_NORMS, is_norm


def trained_parameters(model: nn.Module, groups: dict[str, list[str]], train: Train) -> set[str]:
    """The names of the parameters that a stage moves.

    Args:
        model: whose parameters `groups` names.
        groups: parameter names by layer group, from input to output, the head last.
        train: as in `Stage`. `adapters` are what PEFT made trainable, the head with them. Patterns are names of
            modules or of layer groups, with `*` and `?`; a module stands for all that is in it. `bias` and `norm`
            train the head as well, which is new where the classes differ.

    Raises:
        UserError: a pattern fits nothing, or more groups are asked for than there are.
    """
    places = list(groups)
    head = {name for name in groups[places[-1]] if model.get_parameter(name).requires_grad}  # PEFT keeps the old one
    everything = {name for names in groups.values() for name in names}
    if train == "all":
        # A mask token serves pretraining only: it never gets a gradient, for which other processes would wait.
        return {name for name in everything if not name.endswith("mask_token")}
    if train == "adapters":
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if train == "head":
        return head
    if train == "bias":
        return head | {name for name in everything if _is_bias(name, model.get_parameter(name))}
    if train == "norm":
        return head | {
            f"{place}.{name}".lstrip(".")
            for place, module in model.named_modules()
            if is_norm(module)
            for name, _ in module.named_parameters(recurse=False)
        }
    if isinstance(train, dict):
        count = train["last"]
        if count >= len(places):
            raise UserError(
                f"train: last {count} is more than the {len(places) - 1} layer groups before the head: "
                f"{', '.join(places[:-1])}"
            )
        return {name for place in places[-1 - count :] for name in groups[place]}
    return {name for pattern in train for name in _matching(model, groups, pattern)}


def _is_bias(name: str, parameter: nn.Parameter) -> bool:
    """A vector called so: `bias`, `in_proj_bias`, `bias_ih_l0`."""
    return parameter.ndim == 1 and "bias" in name.rpartition(".")[2].split("_")


def _matching(model: nn.Module, groups: dict[str, list[str]], pattern: str) -> list[str]:
    if pattern in groups:
        return groups[pattern]
    names = [name for names in groups.values() for name in names]
    found = [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}.*")]
    if not found:
        modules = [name for name, _ in model.named_modules() if name]
        raise UserError(
            f"train: {pattern!r} is no layer group and fits no module{nearest(pattern, modules)}: the layer groups "
            f"are {', '.join(groups)}"
        )
    return found


@contextmanager
def only_training(
    model: PreTrainedModel, trained: set[str], train: Train, train_batchnorm_stats: bool
) -> Iterator[None]:
    """Within, only `trained` parameters have gradients, and the running statistics of frozen BatchNorms stay.

    A BatchNorm's statistics move where all its parameters train as part of a layer group or pattern, and never under
    `bias` and `norm`, unless `train_batchnorm_stats`. When the block ends without an error, everything that was frozen
    is compared with what it was.

    Raises:
        UserError: something that was frozen has moved; the message names the modules.
    """
    hooks = []
    # By tensor, not by name: a shared one has several.
    tensors = {id(parameter) for name, parameter in _all_parameters(model) if name in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in tensors)
    trained = trained | {name for name, parameter in _all_parameters(model) if id(parameter) in tensors}
    moving = {name for name, _ in model.named_buffers()} if train == "all" else set()
    for place, module in model.named_modules():
        if not isinstance(module, BATCH_NORMS):
            continue
        own = [f"{place}.{name}" for name, _ in module.named_parameters(recurse=False)]
        whole = train not in ("bias", "norm", "adapters") and own and trained.issuperset(own)
        if train == "all" or whole or train_batchnorm_stats:
            moving |= {f"{place}.{name}" for name, _ in module.named_buffers()}
        else:
            # The Trainer calls model.train() at every step; this comes after it.
            hooks.append(module.register_forward_pre_hook(_evaluate))
    moving |= {name for name, _ in model.named_parameters() if train == "adapters" and is_bookkeeping(name)}
    before = digests(model, trained | moving)
    try:
        yield
        after = digests(model, trained | moving)
        moved = sorted({name.rpartition(".")[0] for name, digest in before.items() if after[name] != digest})
        if moved:
            raise UserError(
                f"{len(moved)} modules moved in a stage that froze them: {', '.join(moved[:10])}"
                f"{', …' if len(moved) > 10 else ''}"
            )
    finally:
        for hook in hooks:
            hook.remove()


def _all_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _evaluate(module: nn.Module, _inputs: tuple) -> None:
    if module.training:
        module.eval()


def digests(model: nn.Module, without: set[str]) -> dict[str, bytes]:
    """A hash of every parameter and persistent buffer but those in `without`."""
    return {
        name: hashlib.blake2b(_bytes(value), digest_size=16).digest()
        for name, value in model.state_dict().items()
        if name not in without
    }


def _bytes(value: torch.Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
