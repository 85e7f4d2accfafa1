"""The provenance of a result: versions, commit, hardware, memory."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL
import torch

_PACKAGES = (
    "ftkit", "torch", "torchvision", "transformers", "datasets", "accelerate", "timm", "peft", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES} | {"pillow": PIL.__version__}


def circumstances(device: torch.device) -> dict[str, Any]:
    """Everything that changes the last digits of numbers: the device, the threads, the versions."""
    hardware, threads, _ = arithmetic(device)
    return {"device": hardware, "threads": threads, "python": platform.python_version(), **versions()}


def arithmetic(device: torch.device) -> tuple[str, int, str]:
    """Everything but versions that changes the last digits of float32: hardware, threads, precision of kernels."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    cudnn: Any = torch.backends.cudnn  # type checkers do not see its `conv`
    backends = torch.backends.cuda.matmul, cudnn.conv
    return hardware, torch.get_num_threads(), "/".join(backend.fp32_precision for backend in backends)


def git_commit() -> str | None:
    """The commit of ftkit's checkout, with `-dirty` if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_mb() -> dict[str, float]:
    """This process's peak memory so far, in MB: `ram`, and `gpu` if there is one."""
    # kB on Linux, bytes on macOS
    unit = 1024**2 if sys.platform == "darwin" else 1024
    peak = {"ram": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 1024**2, 1)
    return peak


def environment() -> dict[str, Any]:
    """Versions, commit and hardware."""
    return {
        "python": platform.python_version(),
        "versions": versions(),
        "commit": git_commit(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }
