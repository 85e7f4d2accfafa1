"""The parts of a model: its head, and its layer groups from input to output."""

from collections import Counter

from timm.models import group_parameters
from torch import nn
from transformers import PreTrainedModel, TimmWrapperForImageClassification

from ftkit.errors import UserError

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, of torch's or of any other library's."""
    kind = type(module).__name__.lower()
    return isinstance(module, BATCH_NORMS) or ("norm" in kind and not list(module.children()))


def find_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The name and the module of the linear layer that gives the logits.

    timm models say which it is. Elsewhere it is `classifier` or a layer inside it, as in transformers' vision models
    and ftkit's own.

    Raises:
        UserError: there is no such layer; the message names the linear layers with as many outputs as classes.
    """
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    }
    if isinstance(model, TimmWrapperForImageClassification):
        found = [name for name, module in linear.items() if module is model.timm_model.get_classifier()]
    else:
        found = [name for name in linear if "classifier" in name.split(".")]
    if len(found) != 1:
        raise UserError(
            f"model: the head of {type(model).__name__} cannot be found: {len(found)} layers could be it; linear "
            f"layers with {model.config.num_labels} outputs: {', '.join(linear) or 'none'}"
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
    if isinstance(model, TimmWrapperForImageClassification):
        network = model.timm_model
        grouped = group_parameters(network, network.group_matcher(coarse=True))
        members = [[f"timm_model.{name}" for name in grouped[key]] for key in sorted(grouped)]
        groups = {_common_place(names): names for names in members}
    else:
        groups = {
            place: [f"{place}.{name}" for name, _ in part.named_parameters()] for place, part in _along(model, "")
        }
    grouped = {name for names in groups.values() for name in names}
    # Parameters of a model itself, such as a class token, belong to its input.
    loose = [name for name, _ in model.named_parameters() if name not in grouped]
    groups = {"input": loose, **groups}
    body = {place: [name for name in names if not name.startswith(f"{head}.")] for place, names in groups.items()}
    last = [name for name, _ in model.named_parameters() if name.startswith(f"{head}.")]
    return {**{place: names for place, names in body.items() if names}, head: last}


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


def _common_place(names: list[str]) -> str:
    """The innermost module that all of these parameters are in, or else one that at least half are in.

    timm puts a last norm beside the last block, and position embeddings beside the stem.
    """
    modules = [name.rpartition(".")[0] or name for name in names]
    around = Counter(
        ".".join(parts[:n]) for parts in (m.split(".") for m in modules) for n in range(1, len(parts) + 1)
    )
    del around["timm_model"]
    for share in (1, 0.5):
        shared = [place for place, count in around.items() if count >= share * len(modules)]
        if shared:
            return max(shared, key=lambda place: place.count("."))
    return modules[0]
