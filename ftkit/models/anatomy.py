"""The parts of a model: its head, and its layer groups from input to output."""

from typing import Any

from torch import nn

from ftkit.errors import UserError

from . import timm_models

_PIECES = 4  # the most in a group's name
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, from torch or any other library."""
    kind = type(module).__name__.lower()
    return isinstance(module, BATCH_NORMS) or ("norm" in kind and any(True for _ in module.parameters(recurse=False)))


def is_convolutional(model: nn.Module) -> bool:
    """Whether images should be in channels-last layout, which convolutions prefer."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The name and module of the linear layer that computes the logits.

    timm models name it. In other models, transformers' and ftkit's own, it is `classifier` or a layer inside it.

    Raises:
        UserError: no single layer qualifies; the message lists the layers with as many outputs as classes.
    """
    config: Any = model.config
    classes = config.num_labels
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] == classes
    }
    linear = {name: module for name, module in candidates.items() if isinstance(module, nn.Linear)}
    if (known := timm_models.head(model)) is not None:
        found = [name for name, module in linear.items() if module is known]
    else:
        found = [name for name in linear if "classifier" in name.split(".")]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({type(module).__name__})" for name, module in candidates.items())
        raise UserError(
            f"model: the head of {type(model).__name__} must be one linear layer, and {len(found)} layers "
            f"qualify; modules with {classes} outputs: {listed or 'none'}"
        )
    return found[0], linear[found[0]]


def head_tensors(model: nn.Module) -> set[str]:
    """The names of the parameters and buffers of a model's head.

    Raises:
        UserError: the head cannot be found.
    """
    head, _ = find_head(model)
    return {name for name in model.state_dict() if name.startswith(f"{head}.")}


def layer_groups(model: nn.Module) -> dict[str, list[str]]:
    """Parameter names by layer group, from input to output; every parameter is in exactly one group.

    timm models are grouped by timm (`group_matcher(coarse=True)`: stem, stages or blocks, head). In other models a
    group is an item of a module list on the way from input to output, or a module beside such lists (embeddings, a
    last norm). The last group is the head.

    Raises:
        UserError: the head cannot be found.
    """
    head, _ = find_head(model)
    last = [name for name, _ in model.named_parameters() if name.startswith(f"{head}.")]
    members = [[name for name in names if name not in last] for names in _members(model)]
    grouped = {name for names in members for name in [*names, *last]}
    # Parameters of the model itself, such as a class token, belong to the input.
    loose = [name for name, _ in model.named_parameters() if name not in grouped]
    groups: dict[str, list[str]] = {}
    for names in filter(None, [loose, *members]):
        label = _label(model, names)
        groups[label if label not in groups else f"{label}+{len(groups)}"] = names
    return {**groups, head: last}


def _members(model: nn.Module) -> list[list[str]]:
    """The parameter names of each group, including the head's."""
    if (known := timm_models.layer_groups(model)) is not None:
        return known
    place, network = timm_models.network(model)
    return [[f"{inner}.{name}" for name, _ in part.named_parameters()] for inner, part in _along(network, place)]


def plain_name(name: str) -> str:
    """The name of a parameter or module without PEFT's prefix."""
    return name.removeprefix("base_model.model.")


def regroup(groups: dict[str, list[str]], model: nn.Module) -> dict[str, list[str]]:
    """`groups` of a model, for the same model after modules in it were wrapped, as PEFT does.

    Each parameter joins the group of the original module that now contains it.
    """
    places = {name.rpartition(".")[0]: place for place, names in groups.items() for name in names}
    regrouped: dict[str, list[str]] = {place: [] for place in groups}
    for name, _ in model.named_parameters():
        module = plain_name(name).rpartition(".")[0]
        while module not in places and module:
            module = module.rpartition(".")[0]
        regrouped[places.get(module, next(iter(groups)))].append(name)
    return regrouped


def _along(module: nn.Module, place: str) -> list[tuple[str, nn.Module]]:
    """The modules on the way to the output: items of module lists, and the parts of modules that hold such lists."""
    parts = []
    for name, child in module.named_children():
        inner = f"{place}.{name}".lstrip(".")
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            parts += [(f"{inner}.{i}", item) for i, item in child.named_children()]
        elif any(isinstance(part, nn.ModuleList) for part in child.children()) or (
            any(type(part).__name__.endswith("Encoder") for part in child.children())
        ):
            parts += _along(child, inner)
        else:
            parts.append((inner, child))
    return parts


def _label(model: nn.Module, names: list[str]) -> str:
    """The name of a group: its module, or its modules and parameters joined by `+`.

    A group with a module's name holds all parameters of that module and no others.
    """
    outside = [name for name, _ in model.named_parameters() if name not in set(names)]
    around = {".".join(parts[:n]) for parts in (name.split(".") for name in outside) for n in range(len(parts))}
    pieces: list[str] = []
    for name in names:
        parts = name.split(".")
        inside = (".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) not in around)
        piece = next(inside, name)
        if piece not in pieces:
            pieces.append(piece)
    shown = [pieces[0], *(piece.removeprefix(f"{timm_models.PLACE}.") for piece in pieces[1:])]
    return "+".join(shown if len(shown) <= _PIECES else [*shown[: _PIECES - 1], f"{len(shown) - _PIECES + 1}-more"])


def block_classes(model: nn.Module) -> list[str]:
    """Class names of a network's repeated blocks, such as transformer layers or residual blocks."""
    lists = (nn.Sequential, nn.ModuleList)
    blocks = [
        type(block).__name__
        for module in model.modules()
        if isinstance(module, lists)
        for block in module
        if not isinstance(block, lists) and any(block.children())
    ]
    return sorted({name for name in blocks if blocks.count(name) > 1})
