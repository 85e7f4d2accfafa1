"""Weights from elsewhere: a file with a `state_dict`, matched to a model by name, or else by order."""

import logging
import pickle
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ftkit.errors import UserError

from . import timm_models
from .anatomy import find_head, is_inside

logger = logging.getLogger(__name__)
_NESTED = ("state_dict", "model_state_dict", "model", "net", "ema")  # keys where training scripts save a state_dict
_PREFIXES = ("module.", "_orig_mod.", "model.")  # added by DistributedDataParallel, torch.compile and Lightning
# Raised when reading a damaged file.
_DAMAGED = (OSError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
            AssertionError, MemoryError, OverflowError, struct.error)  # fmt: skip
_WAY_OUT = "save only the weights, with the program that made the file: torch.save(model.state_dict(), path)"


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Load the weights of a file into `model`, except its head, because the file names no classes.

    Keys are matched by name, without the prefixes of wrappers. If no name fits, they are matched by order, provided
    that the file holds tensors of the same shapes in the same order.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`, which is read with `weights_only=True`.

    Raises:
        UserError: the file cannot be read without running code from it, or leaves part of the model without weights;
            the message lists the keys that fit nowhere.
    """
    given, head = _read(path), find_head(model)
    wanted = model.state_dict()
    body = {name for name in wanted if not any(is_inside(name, place) for place in head)}
    fitted = _by_name(given, wanted) or _by_order(given, wanted, body)
    missing = sorted(name for name in body - fitted.keys() if not name.endswith("num_batches_tracked"))
    used = {id(value) for value in fitted.values()}
    left = [f"{name} {tuple(value.shape)}" for name, value in given.items() if id(value) not in used]
    if missing:
        raise UserError(
            f"model: {path} does not fit {type(model).__name__}: {len(missing)} of its tensors get no weights, such "
            f"as {', '.join(f'{name} {tuple(wanted[name].shape)}' for name in missing[:5])}; {len(left)} keys of "
            f"the file fit nowhere: {', '.join(left[:10]) or 'none'}: set another architecture or model_args"
        )
    model.load_state_dict({name: value for name, value in fitted.items() if name in body}, strict=False)
    logger.info("weights: %d tensors of %s; the head is new, because the file names no classes", len(body), path)
    if left:
        logger.info("weights: %d keys fit nowhere: %s", len(left), ", ".join(left[:20]))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_layers_in(path)):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        calls = ", ".join(_globals_in(path)[:5])
        why = f"reading it would run code from it ({calls})" if calls else "it is not a file of torch.save, or too old"
        raise UserError(f"model: {path} cannot be read as a file of weights: {why}: {_WAY_OUT}") from None
    except _DAMAGED as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        if "TorchScript" in reason:
            reason = f"it is a TorchScript archive: {_WAY_OUT}"
        raise UserError(f"model: {path} cannot be read as a file of weights: {reason}") from None
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    inside = [loaded[key] for key in _NESTED if key in loaded] if isinstance(loaded, dict) else []
    nested = next((value for value in [*inside, loaded] if isinstance(value, dict)), {})
    tensors = {str(name): value for name, value in nested.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"model: {path} holds no named weights: expected a state_dict; {_WAY_OUT}")
    return tensors


def _layers_in(path: Path) -> list:
    """The classes to allow for a pickled module made only of torch's own layers; empty for any other file."""
    names = _globals_in(path)
    layers = [getattr(nn, name.rpartition(".")[2], None) for name in names if name.startswith("torch.nn.modules.")]
    return layers if len(layers) == len(names) and None not in layers else []


def _globals_in(path: Path) -> list[str]:
    """The functions and classes that a file of `torch.save` needs beyond plain tensors; empty if it is not one."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError):  # `torch.load` reports the reason
        return []


def _by_name(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    fitted = {}
    for key, value in given.items():
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        name = next((name for name in (key, f"{timm_models.PLACE}.{key}") if name in wanted), None)
        if name is not None and wanted[name].shape == value.shape:
            fitted[name] = value
    return fitted


def _by_order(
    given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], body: set[str]
) -> dict[str, torch.Tensor]:
    pairs = list(zip(wanted, given, strict=False))
    if len(given) != len(wanted) or any(wanted[a].shape != given[b].shape for a, b in pairs if a in body):
        return {}
    logger.info("weights: no name fits; matched in order: %s", ", ".join(f"{b} → {a}" for a, b in pairs if a in body))
    return {a: given[b] for a, b in pairs}
