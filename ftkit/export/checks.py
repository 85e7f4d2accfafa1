"""What can be wrong with an export before anything is loaded: the packages, and the folder."""

import importlib.util
import re
from pathlib import Path

from ftkit.errors import UserError

RECORD = "export.json"


def needed_packages(formats: list[str]) -> tuple[str, ...]:
    """What of the extra `export` the formats need; torch.export needs nothing."""
    return ("onnx", "onnxruntime", "onnxscript") if {"onnx", "int8"} & set(formats) else ()


def check_packages(formats: list[str]) -> None:
    """Check that what the formats need is installed.

    Raises:
        UserError: a package is missing.
    """
    if missing := [name for name in needed_packages(formats) if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format {' '.join(formats)} needs {', '.join(missing)}: pip install -e '.[export]'")


def default_folder(model: str) -> Path:
    """`export/` of the run that `model` lies in, or of the model's own folder; for the Hub's, one in `runs/`."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return Path("runs") / f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', model)}-export"
    return (path.parent if (path.parent / "config.yaml").is_file() else path) / "export"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Check that `folder` is free, or holds an export that is to be replaced.

    Raises:
        UserError: it holds something else, or an export that is to be kept.
    """
    if folder.exists() and not (folder / RECORD).is_file():
        raise UserError(f"output_dir: {folder} exists and holds no export: give the name of a new folder")
    if folder.exists() and not overwrite:
        raise UserError(
            f"output_dir: {folder} holds an export: give another --output_dir, or --overwrite true to replace it"
        )
