"""The precision of a run: decided once from all sources, and removed from the model after training.

Training runs in float32, or under bfloat16 or float16 autocast over float32 weights. All reported numbers are computed
in float32 from the saved weights, as a plain `pipeline` computes them.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainingArguments

from ftkit.compat.accelerate import forget_preparation
from ftkit.errors import Advice

HALVES = ("bf16", "fp16")
_LAUNCHER = "ACCELERATE_MIXED_PRECISION"


def decide_precision(values: dict[str, Any], on_cpu: bool) -> tuple[dict[str, bool], list[str]]:
    """`bf16` and `fp16` of a run, from its configuration, the launcher and the DeepSpeed file.

    Args:
        values: the configuration by key; only `bf16`, `fp16` and `deepspeed` are read.
        on_cpu: whether the run trains on the CPU.

    Returns:
        The two keys with their values, and one sentence for each contradiction.
    """
    launched = os.environ.get(_LAUNCHER, "no").lower()
    if launched not in ("no", *HALVES):
        return {}, [f"mixed_precision: the launcher's {launched} is not supported: launch with no, bf16 or fp16"]
    ours = "the recipe or command line"
    opinions = {ours: {half: values[half] for half in HALVES if values.get(half) is not None}}
    if launched != "no":  # `no` is also what `accelerate launch` exports by default
        opinions[f"the launcher (mixed_precision: {launched})"] = {half: half == launched for half in HALVES}
    opinions |= _of_deepspeed(values)
    decided, errors = {}, list[str]()
    for half in HALVES:
        said = {source: opinion[half] for source, opinion in opinions.items() if half in opinion}
        decided[half] = any(said.values())
        if len(set(said.values())) > 1:
            listed = ", ".join(f"{str(value).lower()} by {source}" for source, value in said.items())
            message = f"{half}: {listed}: set it in one place only, or to the same value in all"
            errors.append(Advice(message, {half: None}) if ours in said else message)
    if not errors and all(decided.values()):
        errors.append(Advice("bf16 and fp16 are both true: keep one", {"fp16": None}))
    elif not errors and decided["fp16"] and on_cpu:
        source = next(source for source, opinion in opinions.items() if opinion.get("fp16"))
        message = f"fp16: true by {source} needs a GPU, and this run is on the CPU: set bf16 there, or neither"
        errors.append(Advice(message, {"fp16": None}) if source == ours else message)
    return decided, errors


def _of_deepspeed(values: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """The values that a DeepSpeed file sets; `auto` leaves the choice to the other sources."""
    source, config = deepspeed_config(values)
    enabled = {half: config[half]["enabled"] for half in HALVES if "enabled" in (config.get(half) or {})}
    return {source: {half: value for half, value in enabled.items() if isinstance(value, bool)}} if enabled else {}


def deepspeed_config(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and content of the DeepSpeed file of a recipe or the launcher; both empty without a readable file.

    Another check reports an unreadable file.
    """
    given = values.get("deepspeed") or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not given or given == "none":
        return "", {}
    inline = isinstance(given, dict) or "{" in given
    try:
        config = given if isinstance(given, dict) else json.loads(given if inline else Path(given).read_text())
    except (OSError, ValueError):
        return "", {}
    return "deepspeed" if inline else str(given), config if isinstance(config, dict) else {}


def precision_of(args: TrainingArguments) -> str:
    """`fp32`, `bf16` or `fp16`: the precision that training computes in."""
    return next((half for half in HALVES if getattr(args, half)), "fp32")


def remove_autocast(model: nn.Module) -> None:
    """Remove the autocast that accelerate's `prepare` wraps around `forward` and never removes.

    Without accelerate's mark, the next stage prepares the model again, for autocast and for `torch.compile`.
    """
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    forget_preparation(model)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within the block, no float32 product is rounded to TF32, as GPUs do in convolutions by default."""
    backends: Any = torch.backends  # type checkers do not see these attributes
    before, backends.fp32_precision = backends.fp32_precision, "ieee"
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    alone = [(backend, backend.fp32_precision) for backend in parts if backend.fp32_precision != "ieee"]
    try:
        for backend, _ in alone:  # set individually
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in alone:
            backend.fp32_precision = precision
        backends.fp32_precision = before
