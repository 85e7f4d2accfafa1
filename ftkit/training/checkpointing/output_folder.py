"""A run's folder: check that it is free, keep it to one run, clear it and write its configuration."""

import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ftkit.config.configuration import Config
from ftkit.errors import UserError
from ftkit.files import atomic_write

logger = logging.getLogger(__name__)
# Keys that do not change the trained model.
CHANGES_NOTHING = {
    "output_dir", "cache_dir", "dataloader_multiprocessing_context", "dataloader_num_workers",
    "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_timeout",
    "disable_tqdm", "eval_accumulation_steps", "hub_license", "hub_model_id", "hub_private_repo", "hub_revision",
    "on_nan",  # so that a run that stopped at a NaN can resume with another value
    "push_to_hub", "project", "report_to", "run_name", "save_total_limit", "torch_empty_cache_steps", "use_cpu",
}  # fmt: skip
_ENTRIES = ("config.yaml", "data.safetensors", "run.json", "stages", "model", "evaluation")


def check_run_folder(config: Config) -> Path:
    """The run's folder, if it is free, holds an unfinished run of this configuration, or may be overwritten.

    Sets `config.training.resume_from_checkpoint` to None, `true` or a checkpoint's folder.

    Raises:
        UserError: the folder is a file, or holds a finished run or one of another configuration; or the named
            checkpoint belongs to another run, or would be deleted.
    """
    folder, resume = Path(config.training.output_dir), config.training.resume_from_checkpoint or "auto"
    config.training.resume_from_checkpoint = None
    another = _free(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file: name a folder", fix={"output_dir": str(another)})
    if resume not in ("auto", "true", "false"):
        _check_named(Path(resume), folder, config.job.overwrite)
    if config.job.overwrite or not any((folder / entry).exists() for entry in _ENTRIES):
        return folder
    if (folder / "run.json").exists():
        raise UserError(
            f"output_dir: {folder} holds a finished run: give another --output_dir, such as {another}, or --overwrite "
            "true to replace it",
            fix={"output_dir": str(another)},
        )
    if resume == "false":
        raise UserError(
            f"output_dir: {folder} holds an unfinished run: replace it with --overwrite true, or leave "
            "--resume_from_checkpoint false out to resume it",
            fix={"resume_from_checkpoint": None},
        )
    if changed := changes(folder, config):
        raise UserError(
            f"output_dir: {folder} holds an unfinished run of another configuration: {'; '.join(changed)}: give "
            f"another --output_dir, such as {another}, or --overwrite true to replace it",
            fix={"output_dir": str(another)},
        )
    config.training.resume_from_checkpoint = "true" if resume == "auto" else resume
    logger.info("resuming the unfinished run in %s", folder)
    return folder


def _free(folder: Path) -> Path:
    """The first unused name for a folder like this: `run-2`, `run-3`, …"""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(name for name in names if not name.exists())


def _check_named(checkpoint: Path, folder: Path, overwrite: bool) -> None:
    if checkpoint.resolve().parent.parent != (folder / "stages").resolve():
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} is no checkpoint of the run in {folder}: name one in "
            f"{folder / 'stages'}, or set --output_dir to the folder of its run"
        )
    if overwrite:
        raise UserError(
            f"resume_from_checkpoint: overwrite: true would delete {checkpoint}: leave out one of the two",
            fix={"overwrite": None},
        )


def changes(folder: Path, config: Config) -> list[str]:
    """The keys in which the run in a folder differs, with both values; keys that do not affect the result are ignored.

    `data_dir` is ignored for an unfinished run: a resume recognises images by their bytes.

    Raises:
        UserError: the folder holds a run without its configuration.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        if not (folder / "stages").exists():
            return []
        raise UserError(
            f"output_dir: {saved}, the configuration of the run in {folder / 'stages'}, is missing: restore it, give "
            f"another --output_dir, such as {_free(folder)}, or start again with --overwrite true",
            fix={"output_dir": str(_free(folder))},
        )
    there, here = yaml.safe_load(saved.read_text(encoding="utf-8")), yaml.safe_load(config.to_yaml())
    places = set() if (folder / "run.json").exists() else {"data_dir"}
    keys = sorted({*there, *here} - CHANGES_NOTHING - places)
    return [
        f"{key}: {_as_in_yaml(there.get(key))} there, {_as_in_yaml(here.get(key))} here"
        for key in keys
        if there.get(key) != here.get(key)
    ]


def _as_in_yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def check_shared(config: Config) -> None:
    """Check that this machine sees the folder that the first process has created.

    Raises:
        UserError: the folder is missing here.
    """
    folder = Path(config.training.output_dir)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"output_dir: {folder} does not exist on this machine: use one that all machines share")


@contextmanager
def claimed(config: Config) -> Iterator[None]:
    """Create the run's folder and keep other runs out of it within the block. Only the first process does.

    Raises:
        UserError: another run is writing to the folder, or it cannot be written.
    """
    folder = Path(config.training.output_dir)
    if config.training.process_index != 0:
        yield
        return
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"output_dir: {folder} is being written by another run: wait for it, end it, or give another "
            f"--output_dir, such as {_free(folder)}",
            fix={"output_dir": str(_free(folder))},
        ) from None
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # if the disk has become read-only
            Path(lock.lock_file).unlink()
        lock.release()


def begin_run(config: Config) -> None:
    """Delete the files of a run to be overwritten, and no others, and save the configuration."""
    folder = Path(config.training.output_dir)
    if config.job.overwrite:
        for entry in _ENTRIES:
            path = folder / entry
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    with atomic_write(folder / "config.yaml") as aside:
        aside.write_text(config.to_yaml(), encoding="utf-8")
