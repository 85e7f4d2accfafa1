"""The parts of a model: its head, and its layer groups from input to output."""

from torch import nn
from transformers import PreTrainedModel

from ftkit.errors import UserError

from . import timm_models

_PIECES = 4  # of a group's name
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, of torch's or of any other library's."""
    kind = type(module).__name__.lower()
    return isinstance(module, BATCH_NORMS) or ("norm" in kind and any(True for _ in module.parameters(recurse=False)))


def is_convolutional(model: nn.Module) -> bool:
    """Whether images should lie in memory as convolutions like them, channels last."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def find_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The name and the module of the linear layer that gives the logits.

    timm models say which it is. Elsewhere it is `classifier` or a layer inside it, as in transformers' vision models
    and ftkit's own.

    Raises:
        UserError: there is no such layer; the message names the linear layers with as many outputs as classes.
    """
    classes = model.config.num_labels
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
            f"model: the head of {type(model).__name__} cannot be found, one linear layer is expected: {len(found)} "
            f"could be it; modules with {classes} outputs: {listed or 'none'}"
        )
    return found[0], linear[found[0]]


def layer_groups(model: PreTrainedModel) -> dict[str, list[str]]:
    """Parameter names by layer group, in the order from input to output; every parameter is in one group.

    timm models are grouped as timm does it (`group_matcher(coarse=True)`: stem, stages or blocks, head). In other
    models, transformers' and ftkit's own, the layers are the items of the lists of modules along the way from input
    to output, and what stands beside them (embeddings, a last norm). The last group is the head.

    Raises:
        UserError: the head cannot be found.
    """
    head, _ = find_head(model)
    last = [name for name, _ in model.named_parameters() if name.startswith(f"{head}.")]
    members = [[name for name in names if name not in last] for names in _members(model)]
    grouped = {name for names in members for name in [*names, *last]}
    # Parameters of a model itself, such as a class token, belong to its input.
    loose = [name for name, _ in model.named_parameters() if name not in grouped]
    groups: dict[str, list[str]] = {}
    for names in filter(None, [loose, *members]):
        label = _label(model, names)
        groups[label if label not in groups else f"{label}+{len(groups)}"] = names
    return {**groups, head: last}


def _members(model: PreTrainedModel) -> list[list[str]]:
    """The parameter names of each group, the head's among them."""
    if (known := timm_models.layer_groups(model)) is not None:
        return known
    place, network = timm_models.network(model)
    return [[f"{inner}.{name}" for name, _ in part.named_parameters()] for inner, part in _along(network, place)]


def plain_name(name: str) -> str:
    """A parameter's or module's name without what PEFT puts before it."""
    return name.removeprefix("base_model.model.")


def regroup(groups: dict[str, list[str]], model: nn.Module) -> dict[str, list[str]]:
    """`groups` of a model for the same model after modules in it were wrapped, as PEFT does.

    A parameter belongs to the group of the module of `groups` that it lies in now.
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
    """The modules along the way: a list of modules gives its items, what holds such a list gives its own parts."""
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
    """What a group is called: the module that it is, or the modules and parameters that make it up, joined by `+`.

    A group that is called like a module holds all of its parameters and no others.
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
    """The names of the classes that a network repeats, such as a transformer's layer or a residual block."""
    lists = (nn.Sequential, nn.ModuleList)
    blocks = [
        type(block).__name__
        for module in model.modules()
        if isinstance(module, lists)
        for block in module
        if not isinstance(block, lists) and any(block.children())
    ]
    return sorted({name for name in blocks if blocks.count(name) > 1})
