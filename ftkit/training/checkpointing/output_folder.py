"""A run's folder: whether it is free, and what is cleared and written when the run begins."""

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
# What of a configuration changes nothing of the model that comes out.
CHANGES_NOTHING = {
    "output_dir",
    "cache_dir",
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "disable_tqdm",
    "eval_accumulation_steps",
    "hub_license",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "on_nan",  # unless a run stopped for it, and is to go on
    "push_to_hub",
    "project",
    "report_to",
    "run_name",
    "save_total_limit",
    "torch_empty_cache_steps",
    "use_cpu",
}
_ENTRIES = ("config.yaml", "data.safetensors", "run.json", "stages", "model", "evaluation")


def check_run_folder(config: Config) -> Path:
    """The run's folder, if it is free, if an unfinished run of this configuration lies there, or if it may be cleared.

    `config.training.resume_from_checkpoint` is afterwards what to go on from: None, `true` or a checkpoint's folder.

    Raises:
        UserError: it holds a finished run, or one of another configuration, or is no folder; or the checkpoint that
            is named is of another run, or would be deleted.
    """
    folder, resume = Path(config.training.output_dir), config.training.resume_from_checkpoint or "auto"
    config.training.resume_from_checkpoint = None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file: give the name of a folder")
    if resume not in ("auto", "true", "false"):
        _check_named(Path(resume), folder, config.job.overwrite)
    if config.job.overwrite or not any((folder / entry).exists() for entry in _ENTRIES):
        return folder
    if (folder / "run.json").exists():
        raise UserError(
            f"output_dir: {folder} holds a finished run: give another --output_dir, or --overwrite true to replace it"
        )
    if resume == "false":
        raise UserError(
            f"output_dir: {folder} holds an unfinished run: --overwrite true replaces it, and without "
            "--resume_from_checkpoint false it goes on"
        )
    if changed := changes(folder, config):
        raise UserError(
            f"output_dir: {folder} holds an unfinished run of another configuration: {'; '.join(changed)}: give "
            "another --output_dir, or --overwrite true to replace it"
        )
    config.training.resume_from_checkpoint = "true" if resume == "auto" else resume
    logger.info("goes on with the unfinished run in %s", folder)
    return folder


def _check_named(checkpoint: Path, folder: Path, overwrite: bool) -> None:
    if checkpoint.resolve().parent.parent != (folder / "stages").resolve():
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} is no checkpoint of the run in {folder}, whose own lie in "
            f"{folder / 'stages'}: name one of those, or give --output_dir the folder of its own run"
        )
    if overwrite:
        raise UserError(f"resume_from_checkpoint: overwrite: true would delete {checkpoint}: leave one of them out")


def changes(folder: Path, config: Config) -> list[str]:
    """Which keys the run in a folder has other values of; those that change nothing of its result do not count.

    In an unfinished run the place of the data does not count: a resume recognises images by their bytes.

    Raises:
        UserError: there is a run, and no configuration.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        if not (folder / "stages").exists():
            return []
        raise UserError(
            f"output_dir: {saved} is missing, without which it is not known what run {folder / 'stages'} belongs to: "
            "bring it back, give another --output_dir, or begin anew with --overwrite true"
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
    """That every machine sees the folder that the first process has begun.

    Raises:
        UserError: this one does not.
    """
    folder = Path(config.training.output_dir)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"output_dir: {folder} is not there on this machine: all machines must share one folder")


@contextmanager
def claimed(config: Config) -> Iterator[None]:
    """Within, this run has its folder, which is made, to itself. For the first process; the others follow it.

    Raises:
        UserError: another run writes it, or it cannot be written.
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
            f"output_dir: {folder} is being written by another run: wait for it, end it, or give another --output_dir"
        ) from None
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # where nothing can be written any more
            Path(lock.lock_file).unlink()
        lock.release()


def begin_run(config: Config) -> None:
    """Clear what a run to be overwritten left (nothing else in that folder is touched) and save the configuration."""
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
