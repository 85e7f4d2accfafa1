"""Checks before an export loads anything: the packages, and the folder."""

import importlib.util
import re
from pathlib import Path

from ftkit.errors import UserError

RECORD = "export.json"


def needed_packages(formats: list[str]) -> tuple[str, ...]:
    """The packages that the formats need, from the extra `export`; torch.export needs none."""
    return ("onnx", "onnxruntime", "onnxscript") if {"onnx", "int8"} & set(formats) else ()


def check_packages(formats: list[str]) -> None:
    """Check that the packages for the formats are installed.

    Raises:
        UserError: a package is missing.
    """
    if missing := [name for name in needed_packages(formats) if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format {' '.join(formats)} needs {', '.join(missing)}: pip install -e '.[export]'")


def default_folder(model: str) -> Path:
    """`export/` in the folder of the model's run, or in the model's own; for a Hub model, a folder in `runs/`."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return Path("runs") / f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', model)}-export"
    return (path.parent if (path.parent / "config.yaml").is_file() else path) / "export"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Check that `folder` is free, or holds an export to replace.

    Raises:
        UserError: the folder holds something else, or an export although `overwrite` is false.
    """
    if folder.exists() and not (folder / RECORD).is_file():
        raise UserError(f"output_dir: {folder} exists and holds no export: set --output_dir to a new folder")
    if folder.exists() and not overwrite:
        raise UserError(
            f"output_dir: {folder} holds an export: set another --output_dir, or --overwrite true to replace it",
            fix={"overwrite": True},
        )
