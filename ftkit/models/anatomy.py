"""The parts of a model: its head, and its layer groups from input to output."""

import inspect
import re
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from ftkit.compat.transformers import tensors_of_config
from ftkit.errors import UserError, nearest

from . import timm_models

_PIECES = 4  # the most in a group's name
_NAMED = "head_modules"  # the key of a model's config for the modules that `head` names
_AXES: WeakKeyDictionary[nn.Module, dict[str, int | None]] = WeakKeyDictionary()  # what `class_axes` has found
_FEW = 8  # input channels: a block in oneDNN's kernels for AVX2
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, from torch or any other library."""
    kind = type(module).__name__.lower()
    return isinstance(module, BATCH_NORMS) or ("norm" in kind and any(True for _ in module.parameters(recurse=False)))


def is_convolutional(model: nn.Module) -> bool:
    """Whether images should be in channels-last layout, which convolutions prefer.

    False if it would corrupt memory: on CPUs without AVX-512, or with ONEDNN_MAX_CPU_ISA=AVX2 on any, oneDNN writes
    past the gradient of a 1 x 1 convolution with a stride and 2 to 7 input channels in this layout (torch 2.15).
    Other kernels, groups, paddings, image sizes down to 1 x 1, and 8 channels or more gave the right gradients.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    fragile = any(
        layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels < _FEW for layer in convolutions
    )
    return bool(convolutions) and not fragile


def check_takes_images(model: nn.Module) -> None:
    """Check that a model takes images.

    Raises:
        UserError: its forward pass has no `pixel_values`.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if named and "pixel_values" not in named:
        raise UserError(
            f"model: {type(model).__name__} takes {', '.join(named[:3])} and no pixel_values, so it cannot be "
            "trained on images: use another model"
        )


def find_head(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the head, by name, in the order of the model.

    These are the layers that compute the logits, which are more than one in models with several heads; or the modules
    that `head` of a recipe names, which hold these layers.

    Raises:
        UserError: no layer depends on the number of classes, and `head` names none.
    """
    config: Any = model.config
    layers = {name.rpartition(".")[0] for name in class_axes(model)}
    named, modules = vars(config).get(_NAMED, []), dict(model.named_modules())
    if unknown := [name for name in named if name not in modules]:
        raise UserError(
            f"model: {_NAMED} in its config names {unknown[0]}, which {type(model).__name__} does not have"
        )
    if not named and (not layers or "" in layers):
        classes = f"num_labels of its config ({config.num_labels})"
        parts = [name for name, module in modules.items() if name and any(True for _ in module.parameters(False))]
        raise UserError(
            f"model: the head of {type(model).__name__} cannot be found, because no module of it changes with "
            f"{classes}: set head to the name of the module that computes the logits: "
            f"{', '.join(parts[-10:])}"
        )
    return {name: module for name, module in modules.items() if name in (named or layers)}


def name_head(model: PreTrainedModel, names: list[str] | None) -> None:
    """Make the modules `names` the head of `model`; its config keeps them, so that a saved model has the same head.

    Args:
        names: names of modules, of timm's models with or without `timm_model.`; None leaves the head as it is.

    Raises:
        UserError: the model has no such module, or its logits come from a module that `names` leaves out.
    """
    if names is None:
        return
    modules = [name for name, _ in model.named_modules() if name]
    inner = timm_models.network(model)[0]
    full = [name if name in modules else f"{inner}.{name}" for name in names]
    for name, place in zip(names, full, strict=True):
        if place not in modules:
            raise UserError(f"head: the model has no module {name!r}{nearest(name, modules)}")
    layers = {name.rpartition(".")[0] for name in class_axes(model)}
    outside = sorted(layer for layer in layers if not any(is_inside(layer, place) for place in full))
    if outside:
        raise UserError(
            f"head: {', '.join(names)} leaves out {', '.join(outside)}, which depends on the number of classes: "
            "name it too",
            fix={"head": [*names, *outside]},
        )
    setattr(model.config, _NAMED, full)


def new_modules(model: nn.Module, lacking: Iterable[str]) -> list[str]:
    """The modules that a file lacks, and the head, if they all come after the last block; otherwise empty."""
    names, new = list(model.state_dict()), set(lacking) | head_tensors(model)
    blocks = [number for number, name in enumerate(names) if re.search(r"\.\d+\.", name) and name not in new]
    end, found = {*names[blocks[-1] + 1 :]} & new if blocks else set(), list[str]()
    for place, _ in model.named_modules():
        inside = {name for name in names if is_inside(name, place)}
        if inside and inside <= end and not any(is_inside(place, outer) for outer in found):
            found.append(place)
    return found if all(any(is_inside(name, place) for place in found) for name in new) else []


def class_axes(model: nn.Module) -> dict[str, int | None]:
    """The tensors that depend on the number of classes, by name, with the axis of the classes.

    A model of the same config with one more class, built without memory, has another shape for them.
    The axis is None if the classes are not simply one axis.
    """
    if model not in _AXES:
        config: Any = model.config
        others, found = tensors_of_config(type(model), config, num_labels=config.num_labels + 1), {}
        for name, tensor in model.state_dict().items():
            if name in others and others[name].shape != tensor.shape:
                axes = [axis for axis, size in enumerate(tensor.shape) if size != others[name].shape[axis]]
                simple = len(axes) == 1 and tensor.shape[axes[0]] == config.num_labels
                found[name] = axes[0] if simple else None
        _AXES[model] = found
    return _AXES[model]


def draw_head(model: nn.Module) -> None:
    """Draw new weights for the layers that compute the logits."""
    with torch.no_grad():
        for name in class_axes(model):
            layer, tensor = model.get_submodule(name.rpartition(".")[0]), model.state_dict()[name]
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                tensor.normal_(std=0.02) if tensor.ndim > 1 else tensor.zero_()
            elif name.endswith(".weight"):  # with its bias
                layer.reset_parameters()


def whole_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A model's tensors by name, for a file; those of a shared module are copied under each of its names.

    transformers refuses to write tensors that are shared, unless its own model declares it.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    first = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    kept = first | model.all_tied_weights_keys.keys()
    return {name: value if name in kept else value.clone() for name, value in state.items()}


def is_inside(name: str, place: str) -> bool:
    """Whether a parameter or module is in the module `place`, or is that module."""
    return name == place or name.startswith(f"{place}.")


def head_tensors(model: nn.Module) -> set[str]:
    """The names of the parameters and buffers of a model's head.

    Raises:
        UserError: the head cannot be found.
    """
    head = find_head(model)
    return {name for name in model.state_dict() if any(is_inside(name, place) for place in head)}


def layer_groups(model: nn.Module) -> dict[str, list[str]]:
    """Parameter names by layer group, from input to output; every parameter is in exactly one group.

    timm models are grouped by timm (`group_matcher(coarse=True)`: stem, stages or blocks, head). In other models a
    group is an item of a module list on the way from input to output, or a module beside such lists (embeddings, a
    last norm). The last group is the head.

    Raises:
        UserError: the head cannot be found.
    """
    head = find_head(model)
    last = [name for name, _ in model.named_parameters() if any(is_inside(name, place) for place in head)]
    members = [[name for name in names if name not in last] for names in _members(model)]
    grouped = {name for names in members for name in [*names, *last]}
    # Parameters of the model itself, such as a class token, belong to the input.
    loose = [name for name, _ in model.named_parameters() if name not in grouped]
    groups: dict[str, list[str]] = {}
    for names in filter(None, [loose, *members]):
        label = _label(model, names)
        groups[label if label not in groups else f"{label}+{len(groups)}"] = names
    return {**groups, "+".join(head): last}


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
