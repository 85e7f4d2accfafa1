"""The precision of a run: decided once, from all who may ask for one, and removed from the model when it has trained.

Training runs in float32, or under autocast in bfloat16 or float16 over float32 weights. What a run reports is computed
in float32 from the weights that it saves, as a plain `pipeline` computes it.
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

HALVES = ("bf16", "fp16")
_LAUNCHER = "ACCELERATE_MIXED_PRECISION"


def decide_precision(values: dict[str, Any], on_cpu: bool) -> tuple[dict[str, bool], list[str]]:
    """`bf16` and `fp16` of a run, from its configuration, the launcher and a DeepSpeed file.

    Args:
        values: what the configuration gives, by key; `bf16`, `fp16` and `deepspeed` count.
        on_cpu: whether the run trains on the CPU.

    Returns:
        The two keys with their values, and one sentence for each contradiction.
    """
    launched = os.environ.get(_LAUNCHER, "no").lower()
    if launched not in ("no", *HALVES):
        return {}, [f"mixed_precision: {launched} of the launcher is not supported: launch with no, bf16 or fp16"]
    opinions = {"the recipe or command line": {half: values[half] for half in HALVES if values.get(half) is not None}}
    if launched != "no":  # which `accelerate launch` exports where nobody said anything
        opinions[f"the launcher (mixed_precision: {launched})"] = {half: half == launched for half in HALVES}
    opinions |= _of_deepspeed(values)
    decided, errors = {}, []
    for half in HALVES:
        said = {source: opinion[half] for source, opinion in opinions.items() if half in opinion}
        decided[half] = any(said.values())
        if len(set(said.values())) > 1:
            listed = ", ".join(f"{str(value).lower()} by {source}" for source, value in said.items())
            errors.append(f"{half}: {listed}: set it in one place only, or to the same value in all")
    if not errors and all(decided.values()):
        errors.append("bf16 and fp16 are both true: keep one")
    elif not errors and decided["fp16"] and on_cpu:
        source = next(source for source, opinion in opinions.items() if opinion.get("fp16"))
        errors.append(f"fp16: true by {source} needs a GPU, and this runs on the CPU: ask there for bf16, or none")
    return decided, errors


def _of_deepspeed(values: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """What a DeepSpeed file says; `auto` leaves it to the others."""
    source, config = deepspeed_config(values)
    enabled = {half: config[half]["enabled"] for half in HALVES if "enabled" in (config.get(half) or {})}
    return {source: {half: value for half, value in enabled.items() if isinstance(value, bool)}} if enabled else {}


def deepspeed_config(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The DeepSpeed file of a recipe or of the launcher: its name, and what it says. Nothing where there is none, or
    where it cannot be read, which has a check of its own."""
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
    """`fp32`, `bf16` or `fp16`: what training computes in."""
    return next((half for half in HALVES if getattr(args, half)), "fp32")


def remove_autocast(model: nn.Module) -> None:
    """Take off the autocast that accelerate's `prepare` puts around `forward`, and leaves there.

    Without its mark the model is prepared anew in the next stage, for autocast and for `torch.compile`.
    """
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    forget_preparation(model)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within, no product of float32 is rounded to TF32, which GPUs do in convolutions unless they are told."""
    backends: Any = torch.backends  # whose modules get these attributes in a way that type checkers do not follow
    before, backends.fp32_precision = backends.fp32_precision, "ieee"
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    alone = [(backend, backend.fp32_precision) for backend in parts if backend.fp32_precision != "ieee"]
    try:
        for backend, _ in alone:  # which was set by itself
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in alone:
            backend.fp32_precision = precision
        backends.fp32_precision = before
