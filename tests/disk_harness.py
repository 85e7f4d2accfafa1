"""A run on a disk that fills up at any write, and the same command again once there is room.

    python tests/disk_harness.py          # some disk sizes, about a minute
    python tests/disk_harness.py --long   # every size, in pages of 4 KiB, from none to enough

The disk holds the run's folder, ftkit's cache, or that of `datasets`. Prints how many sizes were survived: the run
succeeds, or ends with one message and exit code 2 and does not count as finished; and with room the same command
gives the model, metrics and log of an undisturbed run, byte for byte (except the seconds). The disk is a tmpfs; if
none can be mounted, file sizes are limited instead.
"""

import itertools
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from fault_harness import OPTIONS, attempt, outcome
from support import LEARNS

from ftkit.config import DataArguments
from ftkit.data.sources.load import load_data

PAGE = 4096  # bytes, the least a file takes
PLENTY = 1 << 26  # bytes
ONE_STAGE = [
    *LEARNS,
    "--model", "mlp", "--model_args", '{"hidden_sizes": [64]}', "--max_train_samples", "160", "--disable_tqdm", "true",
    "--stages", json.dumps([{"train": "head", "num_train_epochs": 2}]),
]  # fmt: skip


def can_mount() -> bool:
    """Whether a tmpfs can be mounted here."""
    if sys.platform != "linux":
        return False
    with tempfile.TemporaryDirectory() as folder:
        mounted = not subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode
        if mounted:
            subprocess.run(["umount", folder], check=True)
    return mounted


class Disk:
    """A tmpfs of `size` bytes, mounted at `folder`; or, if mounting is not allowed, a limit on file sizes."""

    def __init__(self, folder: Path, size: int, mount: bool):
        self.folder, self.size, self.mount = folder, size, mount

    def __enter__(self) -> "Disk":
        self.folder.mkdir()
        if self.mount:
            size = f"size={self.size + PAGE}"  # a tmpfs of size 0 is unlimited
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.folder], check=True)
            (self.folder / "ballast").write_bytes(bytes(PAGE))
        return self

    def __exit__(self, *error: object) -> None:
        if self.mount:
            subprocess.run(["umount", self.folder], check=True)

    def grow(self) -> None:
        """Make room."""
        self.size = PLENTY
        if self.mount:
            subprocess.run(["mount", "-o", f"remount,size={self.size}", self.folder], check=True)

    def limit(self) -> None:
        """Set the limit, in the process to be limited."""
        if not self.mount:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


class Place(NamedTuple):
    """The content of the disk: the options that put it there, and the preparation."""

    name: str
    options: Callable[[Disk], list[str]]
    prepare: Callable[[Disk], None] = lambda disk: None


def places(root: Path) -> list[Place]:
    """The run's folder, ftkit's cache, and the cache of `datasets`, into which parquet files are read."""
    splits = load_data(DataArguments(dataset="digits", max_train_samples=160))
    (root / "parquet").mkdir()
    for split, rows in splits.items():
        rows.remove_columns("index").to_parquet(root / "parquet" / f"{split}.parquet")

    def read_into(disk: Disk) -> None:
        datasets.config.HF_DATASETS_CACHE = disk.folder

    return [
        Place("output_dir", lambda disk: [*OPTIONS, "--cache_dir", str(root / "cache")]),
        Place("cache_dir", lambda disk: [*ONE_STAGE, "--cache_dir", str(disk.folder)]),
        Place("HF_DATASETS_CACHE", lambda disk: [*ONE_STAGE, "--data_dir", str(root / "parquet")], read_into),
    ]


class Survival(NamedTuple):
    """The result for one disk size: `wrong` is None if the run survived, `enough` true if the disk never filled up."""

    wrong: str | None
    message: str
    enough: bool


def meet(place: Place, size: int, root: Path, expected: dict[str, Any], mount: bool) -> Survival:
    """Run on a disk of this size, make room, and run again."""
    name = f"{place.name}-{size}"
    with Disk(root / name, size, mount) as disk:
        run = disk.folder if place.name == "output_dir" else root / f"{name}-run"

        def prepare() -> None:
            disk.limit()
            place.prepare(disk)

        code, log = attempt(run, prepare, place.options(disk)), run.with_suffix(".log")
        shown = log.read_text()
        messages = [line for line in shown.splitlines() if line.startswith("error: ")]
        lost = shown.count("training continues without it")
        if code not in (0, 2) or "Traceback" in shown:
            return Survival(f"ended with {code}: {shown[-2000:]}", "", False)
        if code == 2 and (len(messages) != 1 or place.name not in messages[0] or "make room there" not in messages[0]):
            return Survival(f"said: {messages}: {shown[-500:]}", "", False)
        if (run / "run.json").exists() != (code == 0):
            return Survival(f"ended with {code}, and there is {'a' if code else 'no'} run.json", "", False)
        disk.grow()
        if code == 2 and (code := attempt(run, prepare, place.options(disk))):
            return Survival(f"could not resume, {code}: {log.read_text()[-2000:]}", "", False)
        found = outcome(run)
        wrong = [key for key in expected if found[key] != expected[key]]
        left = [str(path) for path in disk.folder.rglob(".*")]
        if wrong or left:
            return Survival(f"{wrong} differ, {left} are left, {lost} checkpoints were lost; {messages}", "", False)
        return Survival(None, messages[0] if messages else f"{lost} checkpoints lost", not messages and not lost)


def undisturbed(place: Place, root: Path, mount: bool) -> tuple[dict[str, Any], int]:
    """The outcome of a run with enough room, and the pages that it uses on disk, or in its largest file."""
    name = f"{place.name}-undisturbed"
    with Disk(root / name, PLENTY, mount) as disk:
        run = disk.folder if place.name == "output_dir" else root / f"{name}-run"
        code = attempt(run, lambda: place.prepare(disk), place.options(disk))
        assert code == 0, run.with_suffix(".log").read_text()
        pages = [-(-path.stat().st_size // PAGE) for path in disk.folder.rglob("*") if path.is_file()]
        return outcome(run), sum(pages) if mount else max(pages)


def main() -> int:
    """Try every size in every place; the exit code is 1 if a run did not survive."""
    long, mount, survived, met = "--long" in sys.argv, can_mount(), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for place in places(root):
            expected, most = undisturbed(place, root, mount)
            messages: Counter[str] = Counter()
            for pages in itertools.count() if long else [most * part // 6 for part in range(6)]:
                survival = meet(place, pages * PAGE, root, expected, mount)
                met, survived = met + 1, survived + (survival.wrong is None)
                if survival.wrong:
                    print(f"{place.name} of {pages} pages: {survival.wrong}", flush=True)
                messages[survival.message.replace(f"{place.name}-{pages * PAGE}", place.name)] += 1
                if survival.enough:
                    break
            for message, times in messages.items():
                print(f"{place.name}: {times} × {message}", flush=True)
    print(f"{survived} of {met} sizes of the disk survived")
    return 1 if survived < met else 0


if __name__ == "__main__":
    sys.exit(main())
