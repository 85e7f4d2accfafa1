"""Weights from elsewhere: a file with a `state_dict`, matched to a model by name, or else by order."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ftkit.errors import UserError

from .anatomy import head_tensors
from .loading import AVERAGES, DAMAGED, Loaded, UnpicklingError, check_whole, load, reason

logger = logging.getLogger(__name__)
PAIRS = "weights_in_order.txt"  # in a run's folder
_SHOWN = 3  # of the tensors that are matched by order
_WAY_OUT = "save only the weights, with the program that made the file: torch.save(model.state_dict(), path)"


def load_weights(model: PreTrainedModel, path: Path) -> dict[str, str]:
    """Load the weights of a file into `model`, except its head, because the file names no classes.

    Tensors are matched by name, without the prefixes of wrappers. If no name fits, they are matched by order, provided
    that the file holds tensors of the same shapes in the same order.

    Args:
        model: a model with a new head.
        path: a `.safetensors` file, or a file of `torch.save`, which is read with `weights_only=True`.

    Returns:
        The name in the file of each tensor that was matched by order; empty if they were matched by name.

    Raises:
        UserError: the file cannot be read without running code from it, or does not fit the model; the message lists
            the keys that fit nowhere.
    """
    given, head, in_order = _read(path), head_tensors(model), dict[str, str]()
    loaded = _load(model, given, path)
    if not loaded.fits and (pairs := _in_order(given, model.state_dict(), head)):
        in_order = {name: there for name, there in pairs.items() if name not in head}
        loaded = _load(model, {name: given[there] for name, there in pairs.items()}, path)
    shapes = {name: value.shape for name, value in given.items()}
    check_whole(loaded, str(path), head, shapes, fix="set another architecture or model_args")
    body = {name: value for name, value in loaded.model.state_dict().items() if name not in head}
    model.load_state_dict(body, strict=False)
    logger.info("weights: %d tensors of %s; the head is new, because the file names no classes", len(body), path)
    if in_order:
        shown = [f"\n  {there} → {name}" for name, there in in_order.items()]
        more = 0 if os.environ.get("FTKIT_DEBUG") else len(shown) - _SHOWN
        rest = f"\n  and {more} more, all in {PAIRS} in the run's folder" if more > 0 else ""
        listed = "".join(shown[: len(shown) - max(more, 0)]) + rest
        logger.info("weights: no name fits; %d tensors are matched by their order:%s", len(in_order), listed)
    return in_order


def save_pairs(in_order: dict[str, str], folder: Path) -> None:
    """Write the result of `load_weights` into a run's folder, if it is not empty."""
    if in_order:
        lines = "".join(f"{there} → {name}\n" for name, there in in_order.items())
        (folder / PAIRS).write_text(lines, encoding="utf-8")


def _load(model: PreTrainedModel, given: dict[str, torch.Tensor], path: Path) -> Loaded:
    """Another model like `model`, with the tensors `given`; the random state stays the same."""
    try:
        with torch.random.fork_rng(devices=[]):
            return load(partial(type(model).from_pretrained, None, config=model.config, state_dict=given), str(path))
    except DAMAGED as error:
        raise UserError(f"model: the weights of {path} cannot be loaded: {reason(error)}") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file by name; those of an average, if the file also holds one."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_layers_in(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        calls = ", ".join(_globals_in(path)[:5])
        why = f"reading it would run code from it ({calls})" if calls else "it is not a file of torch.save, or too old"
        raise UserError(f"model: {path} cannot be read as a file of weights: {why}: {_WAY_OUT}") from None
    except DAMAGED as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        if "TorchScript" in reason:
            reason = f"it is a TorchScript archive: {_WAY_OUT}"
        raise UserError(f"model: {path} cannot be read as a file of weights: {reason}") from None
    found = {"": _tensors(content)}
    if isinstance(content, dict):
        found |= {str(key): _tensors(value) for key, value in content.items()}
    most = max(map(len, found.values()))
    if not most:
        raise UserError(f"model: {path} holds no named weights: expected a state_dict; {_WAY_OUT}")
    sets = [key for key, tensors in found.items() if len(tensors) > most / 2]
    taken = min(sets, key=lambda key: (not AVERAGES.search(key), key != "state_dict", -len(found[key])))
    if len(sets) > 1:
        logger.info("weights: %s holds %s: %s is used", path, " and ".join(map(repr, sets)), repr(taken))
    return found[taken]


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a `state_dict`, or of a module, by name; none of anything else."""
    state = content.state_dict() if isinstance(content, nn.Module) else content
    items = state.items() if isinstance(state, dict) else ()
    return {str(name): value for name, value in items if isinstance(value, torch.Tensor)}


def _layers_in(path: Path) -> list:
    """The classes to allow for a pickled module made only of torch's own layers; empty for any other file."""
    names = _globals_in(path)
    layers = [getattr(nn, name.rpartition(".")[2], None) for name in names if name.startswith("torch.nn.modules.")]
    return layers if len(layers) == len(names) and None not in layers else []


def _globals_in(path: Path) -> list[str]:
    """The functions and classes that a file of `torch.save` needs beyond plain tensors; empty if it is not one."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, UnpicklingError):  # `torch.load` reports the reason
        return []


def _in_order(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], head: set[str]) -> dict[str, str]:
    """The name in the file of each tensor of a model, by their order; empty if a shape outside the head differs."""
    pairs = dict(zip(wanted, given, strict=False))
    same = all(wanted[name].shape == given[there].shape for name, there in pairs.items() if name not in head)
    return pairs if same and len(given) == len(wanted) else {}
