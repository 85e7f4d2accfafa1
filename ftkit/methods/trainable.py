"""The kinds of `train`, the part of a model that a stage trains: a row each in `KINDS`. A new kind is one more row."""

import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ftkit.errors import UserError, nearest

Train = str | list[str] | dict[str, int]
Groups = dict[str, list[str]]  # parameter names by layer group, from input to output, the head last


def _head(model: nn.Module, groups: Groups, _train: Train) -> set[str]:
    *_, head = groups.values()
    return {name for name in head if model.get_parameter(name).requires_grad}  # PEFT freezes the head that it replaces


def _all(_model: nn.Module, groups: Groups, _train: Train) -> set[str]:
    # A mask token is for pretraining only: it never gets a gradient, and DDP would wait for one.
    return {name for name in _everything(groups) if not name.endswith("mask_token")}


def _biases(model: nn.Module, groups: Groups, train: Train) -> set[str]:
    """The head, and every vector with `bias` in its name: `bias`, `in_proj_bias`, `bias_ih_l0`."""
    vectors = [name for name in _everything(groups) if model.get_parameter(name).ndim == 1]
    biases = {name for name in vectors if "bias" in name.rpartition(".")[2].split("_")}
    return _head(model, groups, train) | biases


def _norms(model: nn.Module, groups: Groups, train: Train) -> set[str]:
    from ftkit.models.anatomy import is_norm  # late: it loads timm, and this module checks configurations

    return _head(model, groups, train) | {
        f"{place}.{name}".lstrip(".")
        for place, module in model.named_modules()
        if is_norm(module)
        for name, _ in module.named_parameters(recurse=False)
    }


def _adapters(model: nn.Module, _groups: Groups, _train: Train) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _last_groups(_model: nn.Module, groups: Groups, train: Any) -> set[str]:
    places, count = list(groups), train["last"]
    if count >= len(places):
        raise UserError(
            f"train: last {count} is more than the {len(places) - 1} layer groups before the head: "
            f"{', '.join(places[:-1])}"
        )
    return {name for place in places[-1 - count :] for name in groups[place]}


def _matching(model: nn.Module, groups: Groups, train: Train) -> set[str]:
    return {name for pattern in train for name in _matching_one(model, groups, pattern)}


def _matching_one(model: nn.Module, groups: Groups, pattern: str) -> list[str]:
    if pattern in groups:
        return groups[pattern]
    names = _everything(groups)
    found = [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}.*")]
    if not found:
        modules = [name for name, _ in model.named_modules() if name]
        raise UserError(
            f"train: {pattern!r} is no layer group and matches no module{nearest(pattern, modules)}: the layer groups "
            f"are {', '.join(groups)}"
        )
    return found


def _everything(groups: Groups) -> list[str]:
    return [name for names in groups.values() for name in names]


def _is_last(train: Any) -> bool:
    return isinstance(train, dict) and list(train) == ["last"] and type(train["last"]) is int and train["last"] > 0


def _is_patterns(train: Any) -> bool:
    return isinstance(train, list) and bool(train) and all(isinstance(pattern, str) for pattern in train)


class Trainable(NamedTuple):
    """One form of `train` and what it trains.

    Attributes:
        written: the word in a recipe, or a description of the form that `fits` recognises.
        parameters: function (model, its layer groups, the value of `train`) -> names of the parameters.
        fits: function that tests whether a value of `train` has this form; None: only the word `written` has it.
        stage_name: function from the value of `train` to the default name of a stage; None: the word `written`.
        head_alone: whether only the head trains, so features can be cached.
        moves_buffers: whether all buffers of the model move too.
        moves_statistics: whether the running statistics of a BatchNorm move if all its parameters train.
        needs_adapters: whether the model must have adapters.
        saved_with_adapters: whether an adapter's files include these parameters, so they may train beside adapters.
        beside_head: whether this trains the head and some body parameters; a warning is logged if the body has none.
    """

    written: str
    parameters: Callable[[nn.Module, Groups, Train], set[str]]
    fits: Callable[[Any], bool] | None = None
    stage_name: Callable[[Any], str] | None = None
    head_alone: bool = False
    moves_buffers: bool = False
    moves_statistics: bool = True
    needs_adapters: bool = False
    saved_with_adapters: bool = False
    beside_head: bool = False


KINDS = (
    Trainable("head", _head, head_alone=True, saved_with_adapters=True),
    Trainable("all", _all, moves_buffers=True),
    Trainable("bias", _biases, moves_statistics=False, beside_head=True),
    Trainable("norm", _norms, moves_statistics=False, beside_head=True),
    Trainable("adapters", _adapters, moves_statistics=False, needs_adapters=True, saved_with_adapters=True),
    Trainable("a mapping `last: n`", _last_groups, _is_last, lambda train: f"last-{train['last']}"),
    Trainable("a list of module names", _matching, _is_patterns, lambda _: "chosen"),
)


def kind_of(train: Any) -> Trainable:
    """The row for a value of `train` that `check_train` accepts."""
    return next(kind for kind in KINDS if _is_kind(kind, train))


def _is_kind(kind: Trainable, train: Any) -> bool:
    return kind.fits(train) if kind.fits else train == kind.written


def stage_name(train: Train) -> str:
    """The name of a stage if the recipe gives none."""
    kind = kind_of(train)
    return kind.stage_name(train) if kind.stage_name else kind.written


def trained_parameters(model: nn.Module, groups: Groups, train: Train) -> set[str]:
    """The names of the parameters that a stage trains.

    Args:
        model: the model that `groups` belongs to.
        groups: parameter names by layer group, from input to output, the head last.
        train: the value of `Stage.train`. `adapters` are the parameters that PEFT made trainable, the head's included.
            Patterns match names of modules or layer groups, with `*` and `?`; a module stands for everything in it.

    Raises:
        UserError: a pattern matches nothing, or there are fewer layer groups than `last` asks for.
    """
    return kind_of(train).parameters(model, groups, train)


def check_train(train: Any, has_adapters: bool) -> str | None:
    """The error in a value of `train`, if any.

    Args:
        has_adapters: whether the method adds adapters to the model.
    """
    kind = next((kind for kind in KINDS if _is_kind(kind, train)), None)
    if kind is None:
        *some, last = (kind.written for kind in KINDS)
        return f"{train!r} is not one of {', '.join(some)}, or {last}"
    if has_adapters and not kind.saved_with_adapters:
        saved = " or ".join(kind.written for kind in KINDS if kind.saved_with_adapters)
        return f"{train!r} would not be saved with an adapter: expected {saved}"
    if kind.needs_adapters and not has_adapters:
        return f"{kind.written} needs a method that adds them, such as method: lora"
    return None
