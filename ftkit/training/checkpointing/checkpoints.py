"""Checkpoints that are complete or invisible, and the newest complete one.

A checkpoint is written to a hidden folder, listed in a manifest with sizes and hashes, synced to the disk, and
renamed. A folder named `checkpoint-<step>` that does not hold everything its manifest lists is skipped.
"""

import json
import logging
import os
import shutil
from pathlib import Path

from ftkit.files import file_hash, hidden, rename, sync

logger = logging.getLogger(__name__)
STATE = "trainer_state.json"  # written by the `Trainer`
_MANIFEST = "manifest.json"
PREFIX = "checkpoint-"  # before the step, in the name of a checkpoint


def seal(aside: Path, folder: Path) -> None:
    """Write the manifest of the folder `aside`, sync everything to the disk, and rename it to `folder`."""
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    listed = {
        str(path.relative_to(aside)): {"size": path.stat().st_size, "xxh3_128": file_hash(path)} for path in files
    }
    manifest = aside / _MANIFEST
    manifest.write_text(json.dumps(listed, indent=1))
    for path in (*files, manifest, aside):
        sync(path)
    remove(folder)
    rename(aside, folder)


def defect_of(folder: Path) -> str | None:
    """Why a folder is not a complete checkpoint; None if it holds, byte for byte, what its manifest lists."""
    if not folder.is_dir():
        return "does not exist"
    try:
        listed = json.loads((folder / _MANIFEST).read_text())
        for name, about in listed.items():
            path = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return f"has a {_MANIFEST} that lists {name}, which is outside the checkpoint"
            if not path.is_file():
                return f"has no {name}"
            if path.stat().st_size != about["size"]:
                return f"holds {path.stat().st_size:,} bytes of {name} instead of {about['size']:,}"
            if file_hash(path) != about["xxh3_128"]:
                return f"holds a changed {name}"
    except FileNotFoundError:
        return f"has no {_MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"has a {_MANIFEST} that cannot be read: {error}"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a stage, complete or not, sorted by step."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def best_of(checkpoint: Path) -> Path | None:
    """The best checkpoint up to a complete one, in the same folder; None if there was none."""
    best = json.loads((checkpoint / STATE).read_text())["best_model_checkpoint"]
    return checkpoint.with_name(Path(best).name) if best else None


def newest_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage, or None; those that are skipped are named in the log.

    The best checkpoint that it names must be complete too: its weights may be the stage's result.
    """
    for checkpoint in reversed(checkpoints(folder)):
        wrong = defect_of(checkpoint) or _wrong_with_best(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("skipped %s: it %s", checkpoint, wrong)
    return None


def _wrong_with_best(checkpoint: Path) -> str | None:
    try:
        best = best_of(checkpoint)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        return f"has a {STATE} that cannot be read: {error}"
    if best is None or (fault := defect_of(best)) is None:
        return None
    return f"names {best.name} as the best, which {fault}"


def remove(folder: Path) -> None:
    """Rename a folder, then delete it, so that a crash leaves nothing that looks complete."""
    if folder.exists():
        shutil.rmtree(hidden(folder), ignore_errors=True)
        os.replace(folder, hidden(folder))
        shutil.rmtree(hidden(folder))


def rotate(folder: Path, limit: int | None, best: Path | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never the newest or the best one."""
    present = checkpoints(folder)
    kept = {present[-1], *([best] if best is not None else [])}
    surplus = len(present) - max(limit, len(kept)) if limit else 0
    for checkpoint in [path for path in present if path not in kept][: max(surplus, 0)]:
        remove(checkpoint)


def sweep(folder: Path) -> None:
    """Delete the unfinished folders of a process that was killed."""
    for path in folder.glob(".*.part"):
        shutil.rmtree(path, ignore_errors=True)
