"""How much main memory a process can still allocate, and a clear error if an allocation fails."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftkit.errors import UserError, short_of_memory

_GROUPS = Path("/sys/fs/cgroup")
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory() -> int:
    """The bytes that this process can still allocate.

    This is the minimum of the machine's available memory and what the limits of the process's control groups
    (containers, SLURM) leave, divided by the number of processes that the launcher started on this machine; or what
    the limit of its address space (`ulimit -v`) leaves, if that is less.
    """
    shared = min([_left_in_machine(), *_left_in_groups()]) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(min([shared, *_left_in_process()]), 0)


def _left_in_machine() -> int:
    """The machine's available memory, reclaimable page cache included; outside Linux, its total memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _left_in_process() -> Iterator[int]:
    """The address space left below this process's limit; none without a limit or outside Linux."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit != resource.RLIM_INFINITY and statm.is_file():
        yield limit - int(statm.read_text().split()[0]) * resource.getpagesize()


def _left_in_groups() -> Iterator[int]:
    """The memory left below the limit of each control group of this process; none outside Linux."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (_GROUPS / "memory", _V1) if controllers else (_GROUPS, _V2)
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            if (left := _left(folder, *names)) is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """The limit minus the usage, not counting reclaimable page cache; None without a limit."""
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return None  # the root group has no such files, and a container hides the groups above its own
    cached = next((int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")), 0)
    return None if most == "max" else int(most) - used + cached


@contextmanager
def enough_memory(doing: str, advice: str, fix: dict[str, Any] | None = None) -> Iterator[None]:
    """Turn a failed allocation within the block into a `UserError`.

    Args:
        doing: what the block does, such as `decoding images`.
        advice: how to use less memory.
        fix: the settings that `advice` recommends, as in `UserError`.

    Raises:
        UserError: an allocation failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if (short := short_of_memory(error)) is None:
            raise
        raise UserError(f"{doing}: {short}: {advice}", fix) from error
