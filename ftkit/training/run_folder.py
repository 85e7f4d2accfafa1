"""A run's folder: whether it is free, and what is cleared and written when the run begins."""

import shutil
from pathlib import Path

from ftkit.config import Config
from ftkit.errors import UserError

_ENTRIES = ("config.yaml", "run.json", "stages", "model", "evaluation")


def check_run_folder(config: Config) -> Path:
    """The run's folder, if it is free, or if the configuration says what to do with what lies there.

    Raises:
        UserError: it holds a finished run, or an unfinished one, or is no folder.
    """
    folder, resume = Path(config.training.output_dir), config.training.resume_from_checkpoint
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file: give the name of a folder")
    if config.run.overwrite or not any((folder / entry).exists() for entry in _ENTRIES):
        return folder
    if (folder / "run.json").exists():
        raise UserError(
            f"output_dir: {folder} holds a finished run: give another --output_dir, or --overwrite true to replace it"
        )
    if not resume:
        raise UserError(
            f"output_dir: {folder} holds an unfinished run: --resume_from_checkpoint true goes on with it, "
            "--overwrite true replaces it"
        )
    return folder


def begin_run(config: Config) -> None:
    """Clear what a run to be overwritten left (nothing else in that folder is touched) and save the configuration."""
    folder = Path(config.training.output_dir)
    if config.run.overwrite:
        for entry in _ENTRIES:
            path = folder / entry
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error}") from error
