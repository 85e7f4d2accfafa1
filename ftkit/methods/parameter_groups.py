"""The learning rate of every parameter, and which of them decay."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ftkit.config import LossArguments, MethodArguments
from ftkit.models import timm_models


class Setting(NamedTuple):
    """What the optimizer does with a parameter: its learning rate, whether weight decay and L1 reach it, and whether
    it is of the head, which Muon leaves to AdamW."""

    learning_rate: float
    decays: bool
    of_head: bool = False


def parameter_settings(
    model: nn.Module,
    groups: dict[str, list[str]],
    learning_rate: float,
    method: MethodArguments,
    loss: LossArguments,
) -> dict[str, Setting]:
    """The setting of every parameter, by name.

    Layer-wise decay (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254): the group that stands
    n groups before the head learns with `learning_rate * layer_decay ** n`; the head with `head_lr_multiplier` times
    the learning rate. Weight decay leaves out vectors (biases, scales and shifts of norms), position embeddings and
    the scales of adapters, unless `decay_norms_and_biases`.

    Args:
        groups: parameter names by layer group, from input to output, the head last.
    """
    kept = _no_weight_decay(model) | _scales_of_adapters(model)
    settings = {}
    for distance, names in enumerate(reversed(groups.values())):
        rate = learning_rate * (method.layer_decay**distance if distance else method.head_lr_multiplier)
        for name in names:
            decays = _is_matrix(name, model.get_parameter(name)) and name not in kept
            settings[name] = Setting(rate, decays or loss.decay_norms_and_biases, distance == 0)
    return settings


def optimizer_groups(
    model: nn.Module,
    settings: dict[str, Setting],
    weight_decay: float,
    muon: bool = False,
    kinds: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """What trains of a model, as an optimizer takes it: parameters of one learning rate and weight decay together.

    Args:
        settings: by the names of the parameters.
        weight_decay: of what decays.
        muon: the optimizer is timm's Muon, which takes every matrix for a hidden layer's unless it is told.
        kinds: groups in which an optimizer wants its parameters, whose options stay theirs.
    """
    kind_of = {id(parameter): number for number, kind in enumerate(kinds) for parameter in kind["params"]}
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            setting = settings[name]
            decay = weight_decay if setting.decays else 0.0
            key = (setting.learning_rate, decay, muon and setting.of_head, kind_of.get(id(parameter)))
            groups.setdefault(key, []).append(parameter)
    return [
        {**({} if kind is None else kinds[kind]), "params": some, "lr": rate, "weight_decay": decay}
        | ({"use_fallback": True} if adam else {})
        for (rate, decay, adam, kind), some in groups.items()
    ]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """What maps features to features, also by rank 1; not a vector, nor one with sides of 1 around it."""
    ranks = ".lora_" in name and parameter.ndim > 1
    return parameter.ndim == 2 or ranks or sum(side > 1 for side in parameter.shape) > 1


def _scales_of_adapters(model: nn.Module) -> set[str]:
    """What an adapter multiplies a layer's features by: IA3's vectors, BOFT's scale, the magnitude of DoRA.

    It begins positive everywhere, at one or at the norms of weights, while what is added to a layer begins at zero or
    with both signs. Decay pulls the one back to the pretrained weights, and with the other these weights to nothing.
    """
    found = set()
    for place, layer in model.named_modules():
        adapters = layer.adapter_layer_names if isinstance(layer, BaseTunerLayer) else ()
        if not adapters:
            continue
        for name, parameter in layer.named_parameters():
            owner, _, _ = name.rpartition(".")
            factor = isinstance(layer.get_submodule(owner), (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
            if owner.partition(".")[0] in adapters and not factor and bool((parameter > 0).all()):
                found.add(f"{place}.{name}")
    return found


def _no_weight_decay(model: nn.Module) -> set[str]:
    """Position embeddings, and what timm says of its models."""
    kept = {name for name, _ in model.named_parameters() if re.search(r"pos(ition)?_(embed|bias)", name)}
    for place, module in model.named_modules():
        kept |= {f"{place}.{name}".lstrip(".") for name in timm_models.not_decayed(module)}
    return kept
