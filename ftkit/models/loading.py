"""Loads weights, and checks that they are complete: an error names each tensor that the file lacks."""

import json
import logging
import pickle
import re
import struct
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ftkit.compat.transformers import forget_renaming
from ftkit.config import local_model
from ftkit.config.arguments.model import WEIGHTS_SUFFIXES
from ftkit.errors import UserError, as_options, listed

logger = logging.getLogger(__name__)
UnpicklingError = pickle.UnpicklingError
# What libraries raise for damaged files and for files that contradict their config, found by fuzzing. `reason` raises
# bugs of ftkit again.
DAMAGED = (OSError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
           AssertionError, MemoryError, OverflowError, ImportError, struct.error, UnpicklingError,
           StrictDataclassError)  # fmt: skip
_NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)  # in transformers' order
_LONGEST = 300  # characters of a library's message
_SAMPLE = 1000  # values of a tensor that are checked for integers
FULL_PRECISION = "use the original model, or save model.dequantize() with transformers"
AVERAGES = re.compile(r"(^|[._])(ema|teacher)([._]|$)")  # how training scripts name weight averages
_DEPTH = 6  # the most parts that wrappers put before a tensor's name
# Suffixes of tensors that are not weights, from older versions of models and from FLOP counters.
_NOT_WEIGHTS = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask", "position_ids",
                "total_ops", "total_params")  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model with weights from a file.

    Attributes:
        model: the model, in float32. Tensors that the file lacks are random.
        lacking: the missing and mismatched tensors: name -> the shape in the file, or None if it is missing.
        unused: tensors of the file that the model does not have, by the names they would have in it.
    """

    model: PreTrainedModel
    lacking: dict[str, Any]
    unused: list[str]

    @property
    def fits(self) -> bool:
        """Whether the file has most of the model's tensors."""
        return len(self.lacking) < len(self.model.state_dict()) / 2


def load_from(
    place: str, config: PreTrainedConfig, source: dict[str, Any], without: dict[str, Any] | None = None
) -> Loaded:
    """A model with the weights from a folder or the Hub, in float32: small updates would vanish in 16 bits.

    Args:
        place: the folder or the name on the Hub.
        config: the config of the model.
        source: `revision` and `trust_remote_code`.
        without: the settings of a run that needs no weights, for the message.

    Raises:
        UserError: the folder holds no weights.
        OSError, ValueError, …: see `DAMAGED`.
    """
    if (folder := local_model(place)) is not None:
        _find_weights(folder, config, without)

    def from_pretrained(**options: Any) -> Any:
        return AutoModelForImageClassification.from_pretrained(place, config=config, **source, **options)

    return load(from_pretrained, place)


def load(from_pretrained: Callable[..., Any], source: str) -> Loaded:
    """Load weights in float32, stripping the prefixes that wrappers put before their names.

    torch.compile adds `_orig_mod.`, DistributedDataParallel `module.`, Lightning the name of an attribute, such as
    `model.`, and weight averages `ema_model.`; prefixes can be nested.

    Args:
        from_pretrained: a `from_pretrained` of transformers with all arguments bound, except `dtype`, `key_mapping`,
            `ignore_mismatched_sizes` and `output_loading_info`.
        source: where the weights come from, for messages.
    """
    loaded = _attempt(from_pretrained)
    for prefix in [] if loaded.fits else _prefixes(loaded):
        unwrapped = _attempt(partial(from_pretrained, key_mapping={f"^{re.escape(prefix)}": ""}))
        if unwrapped.fits:
            forget_renaming(unwrapped.model)
            logger.warning("weights: the names in %s start with %s, from a wrapper: stripped", source, prefix)
            return unwrapped
    return loaded


def check_whole(
    loaded: Loaded,
    source: str,
    new: Iterable[str] = (),
    shapes: Mapping[str, Any] | None = None,
    fix: str = "",
    settings: dict[str, Any] | None = None,
) -> None:
    """Check that a model got all of its weights, and its layers have no others in the file; log the rest.

    Args:
        loaded: the model, and what its file lacked.
        source: where the weights come from, for messages.
        new: tensors that may be random, because the run trains them from scratch.
        shapes: the shapes of the file's tensors by name, in the file's order, for messages.
        fix: how to get weights that fit, as the end of a message.
        settings: those that `fix` recommends, see `UserError`.

    Raises:
        UserError: a tensor is missing, has another shape, belongs to a layer that the model does not have, or holds
            NaN; the message names the first ones and counts all.
    """
    model, shapes = loaded.model, shapes or {}
    own, allowed = model.state_dict(), set(new)
    lacking = sorted(loaded.lacking.keys() - allowed)
    known = [name for name in shapes if name in set(loaded.unused)]  # in the file's order
    left = [f"{name} {tuple(shapes[name])}" for name in known]
    left += [name for name in loaded.unused if name not in shapes]
    fix = fix or "use the config.json and the weights that were saved together"
    if lacking:
        there = {name: f" instead of {tuple(shape)}" for name, shape in loaded.lacking.items() if shape is not None}
        names = [f"{name} {tuple(own[name].shape)}{there.get(name, '')}" for name in lacking]
        keys = f"; {len(left)} key{'s'[: len(left) > 1]} of the file fit nowhere: {listed(left)}" if left else ""
        raise UserError(
            f"model: {source} does not fit {type(model).__name__}: {len(lacking)} of its {len(own)} tensors get no "
            f"weights, such as {listed(names)}{keys}: {fix}",
            fix=settings,
        )
    replaced = {name.rpartition(".")[0] for name in allowed}
    alien = [name for name in loaded.unused if name.rpartition(".")[0] not in replaced and _is_of_layers(name, model)]
    if alien:
        raise UserError(
            f"model: {source} holds weights of layers that {type(model).__name__} does not have: {listed(alien)}; "
            f"without them its predictions would be wrong: {fix}",
            fix=settings,
        )
    check_numbers(own, source, buffers={name for name, _ in model.named_buffers()})
    if left:
        logger.info("weights: %s: not used, since the model has no such tensors: %s", source, listed(left))


def check_numbers(tensors: Mapping[str, torch.Tensor], source: str, buffers: Iterable[str] = ()) -> None:
    """Check that weights are finite, and not the integers of a quantised model.

    Raises:
        UserError: they are not; the message names their tensors.
    """
    weights = {name: tensors[name] for name in sorted(tensors.keys() - set(buffers))}
    broken = [name for name, value in tensors.items() if bool(value.isnan().any())]
    broken += [name for name, value in weights.items() if name not in broken and bool(value.isinf().any())]
    if broken:
        raise UserError(
            f"model: {source} holds NaN or infinite values in {len(broken)} of {len(tensors)} "
            f"tensors: {listed(broken)}: use a checkpoint from before training diverged"
        )
    first = {name: value.flatten()[:_SAMPLE] for name, value in weights.items() if value.ndim > 1 and value.numel()}
    if whole := [name for name, some in first.items() if some.abs().max() > 1 and bool((some == some.round()).all())]:
        raise UserError(
            f"model: {source} holds integers as weights, like a quantised model: {listed(whole)}: {FULL_PRECISION}"
        )


def stored_weights(folder: Path) -> list[str]:
    """The files of full weights in a folder, in the order in which transformers prefers them."""
    return [name for name in _NAMES if (folder / name).is_file()]


def _find_weights(folder: Path, config: PreTrainedConfig, without: dict[str, Any] | None) -> None:
    """Check that a folder holds weights for transformers, and log weights files that are not used.

    Raises:
        UserError: there are none.
    """
    named = getattr(config, "transformers_weights", None)
    found = [named] if named else stored_weights(folder)
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (*WEIGHTS_SUFFIXES, ".h5", ".msgpack"))
    if not found:
        other = next((name for name in files if name.endswith(WEIGHTS_SUFFIXES)), None)
        hint = f"; to load {other}, set --model {folder / other} and --architecture" if other else ""
        raise UserError(
            f"model: {folder} holds a config.json but no weights: expected {_NAMES[0]} or {_NAMES[2]}{hint}"
            f"{f'; to start from random weights, set {as_options(without)}' if without else ''}",
            fix=without,
        )
    used = {found[0], *(_shards(folder / found[0]) if found[0].endswith(".json") else ())}
    if missing := sorted(name for name in used if not (folder / name).is_file()):
        raise UserError(f"model: {folder} lacks the weights files {listed(missing)}: copy or download it again")
    others = [*found[1:], *(name for name in files if re.match(r".*model.*\.", name) and name not in found)]
    if left := [name for name in others if name not in used]:
        logger.info("weights: from %s; not used: %s", found[0], listed(left))


def _shards(index: Path) -> set[str]:
    """The files of weights that an index lists."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"model: {index} is not a weights index ({error}): copy or download it again") from None


def reason(error: BaseException) -> str:
    """Why a library cannot load something, in one line, with the fix if a file is damaged.

    An error from ftkit's own code is a bug and is raised again, except a `ValueError`: ftkit's models refuse a config
    with it.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals["__name__"].startswith("ftkit.") and not isinstance(error, ValueError):
        raise error
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle that would run code, or are damaged: save them as .safetensors"
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{text} is unknown" if isinstance(error, KeyError) else text
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    damaged = isinstance(error, (SafetensorError, EOFError, json.JSONDecodeError)) or "PytorchStreamReader" in text
    unread = damaged or getattr(error, "errno", None) is not None
    return f"one of its files is damaged or incomplete ({text}): copy or download it again" if unread else text


def _attempt(from_pretrained: Callable[..., Any]) -> Loaded:
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, report = from_pretrained(**options)
    lacking = dict.fromkeys(report["missing_keys"]) | {name: there for name, there, _ in report["mismatched_keys"]}
    computed = {name for name, _ in model.named_buffers()}  # including those that newer versions no longer store
    unused = [name for name in report["unexpected_keys"] if name not in computed and not name.endswith(_NOT_WEIGHTS)]
    lacking = {name: shape for name, shape in lacking.items() if not name.endswith("num_batches_tracked")}
    return Loaded(model, lacking, sorted(unused))


def _prefixes(loaded: Loaded) -> list[str]:
    """The prefixes of enough unused tensors to be a model: those of a weight average first, then the shortest."""
    place, counts = f"{loaded.model.base_model_prefix}.", dict[str, int]()
    for name in loaded.unused:
        parts = name.removeprefix(place).split(".")
        for depth in range(1, min(len(parts), _DEPTH + 1)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    found = [prefix for prefix, count in counts.items() if count > len(loaded.model.state_dict()) / 2]
    return sorted(found, key=lambda prefix: (not AVERAGES.search(prefix), len(prefix)))


def _is_of_layers(name: str, model: nn.Module) -> bool:
    """Whether an unused tensor belongs to a layer of the model, or to a block like one of its numbered blocks.

    Modules that the model does not have, such as a pooler or a decoder, and parameters outside of layers, such as a
    mask token, do not count.
    """
    modules = {_unnumbered(place): module for place, module in model.named_modules()}
    parts = _unnumbered(name).split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    in_block = any(place in modules for place in above if "*" in place)
    return in_block or (bool(above) and above[-1] in modules and not any(modules[above[-1]].children()))


def _unnumbered(name: str) -> str:
    """A tensor's name with `*` for the numbers of blocks and layers."""
    return re.sub(r"\d+(?=\.|$)", "*", name)
