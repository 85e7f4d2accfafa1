"""The learning rate and weight decay of every parameter."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ftkit.config import LossArguments, MethodArguments


class Setting(NamedTuple):
    """How the optimizer treats a parameter: its learning rate, whether weight decay and L1 apply, and whether it
    belongs to the head, which Muon leaves to AdamW."""

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

    Layer-wise learning-rate decay (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254): the n-th
    group before the head has `learning_rate * layer_decay ** n`, the head `head_lr_multiplier * learning_rate`. Weight
    decay leaves out vectors (biases, scales and shifts of norms), position embeddings and the scales of adapters,
    unless `decay_norms_and_biases`.

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
    """The trained parameters as an optimizer's groups, each with one learning rate and weight decay.

    Args:
        settings: the settings by parameter name.
        weight_decay: the weight decay of the parameters that decay.
        muon: whether the optimizer is timm's Muon, which treats every matrix as a hidden layer's, unless its group has
            `use_fallback`.
        kinds: groups that the optimizer made itself; their options are kept.
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
    """Whether a parameter maps features to features, even at rank 1; a vector with extra sides of 1 does not."""
    ranks = ".lora_" in name and parameter.ndim > 1
    return parameter.ndim == 2 or ranks or sum(side > 1 for side in parameter.shape) > 1


def _scales_of_adapters(model: nn.Module) -> set[str]:
    """The adapter parameters that multiply a layer's features: IA3's vectors, BOFT's scale, DoRA's magnitude.

    They start positive, at one or at the norms of weights; other parameters of adapters start at zero or with both
    signs. Decay pulls those back to the pretrained weights, but would pull scales to zero.
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
    """The position embeddings, and for timm's models what timm lists."""
    from ftkit.models import timm_models  # late: it loads timm, and checks of a configuration load this module

    kept = {name for name, _ in model.named_parameters() if re.search(r"pos(ition)?_(embed|bias)", name)}
    for place, module in model.named_modules():
        kept |= {f"{place}.{name}".lstrip(".") for name in timm_models.not_decayed(module)}
    return kept
