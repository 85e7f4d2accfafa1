"""The device of a run, and whether the machine has the GPUs that the run was launched for."""

import os
from typing import Any

import torch

from ftkit.errors import Advice

_ON_CPU = "launch with --config_file accelerate_configs/cpu.yaml"
_HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES


def runs_on_cpu(values: dict[str, Any]) -> bool:
    """Whether the configuration (`use_cpu`) or the launcher asks for the CPU, or there is no accelerator."""
    no_accelerator = not torch.accelerator.is_available() and not _device_named()
    return bool(values.get("use_cpu")) or _launched_for_cpu() or no_accelerator


def _device_named() -> bool:
    return "ACCELERATE_TORCH_DEVICE" in os.environ


def _launched_for_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def check_machine(values: dict[str, Any], takes_use_cpu: bool = True) -> list[str]:
    """The devices that the configuration or the launcher asks for and this machine lacks, one sentence each.

    Args:
        values: the configuration by key; only `use_cpu` is read.
        takes_use_cpu: whether the configuration has the key `use_cpu`.
    """
    if _launched_for_cpu() and values.get("use_cpu") is False:
        contradiction = "use_cpu: false contradicts the launcher's file"
        return [Advice(f"{contradiction}: leave it out, or launch with another --config_file", {"use_cpu": None})]
    if values.get("use_cpu") or _launched_for_cpu() or _device_named():
        return []
    count, named = torch.accelerator.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    numbers = [] if named in _HIDDEN else named.split(",")
    by_number = all(number.strip().isdecimal() for number in numbers)
    by_id = not count and named.startswith(("GPU-", "MIG-"))  # several valid MIG ids may be one device
    if by_id or (by_number and len(numbers) > count):
        return [
            f"CUDA_VISIBLE_DEVICES: {named} (gpu_ids of the launcher) names {_gpus(len(numbers))}, and torch finds "
            f"{_found(count)}: name others{'' if count else f', or {_ON_CPU}'}"
        ]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if processes > count:
        few = f", or add --use_cpu true to run {processes} on the CPU" if takes_use_cpu else ""
        way = (f"launch with --num_processes {count}" if count else _ON_CPU) + few
        message = f"num_processes: {processes} on this machine need a GPU each, and torch finds {_found(count)}: {way}"
        return [Advice(message, {"use_cpu": True}) if takes_use_cpu else message]
    if values.get("use_cpu") is False and not count:
        message = f"use_cpu: false asks for a GPU, and torch finds {_found(count)}: leave it out, or set it to true"
        return [Advice(message, {"use_cpu": None})]
    return []


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'' if count == 1 else 's'}"


def _found(count: int) -> str:
    """How many GPUs torch finds; if none, with the likely reason."""
    if count:
        return _gpus(count)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in _HIDDEN:
        return "none (CUDA_VISIBLE_DEVICES hides all)"
    return "none" if torch.version.cuda or torch.version.hip else "none (it was built without CUDA)"
