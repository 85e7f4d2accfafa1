"""Helpers that the tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[1]


def load_recipe_script(name: str) -> ModuleType:
    """The script `recipes/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", REPO / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_reloads(run: Path) -> None:
    """`recipes/evaluate.py`, from the saved model alone, gives the probabilities that the run stored."""
    load_recipe_script("evaluate").main(["--model", str(run), "--output_dir", str(run / "again")])
    tables = [pq.read_table(run / place / "predictions.parquet") for place in ("evaluation", "again")]
    stored, again = (np.stack(table["probabilities"].to_numpy()) for table in tables)
    np.testing.assert_allclose(again, stored, atol=1e-5)


def finetune(output_dir: Path, *options: object) -> Path:
    """Run the main job in this process; returns the run's folder."""
    load_recipe_script("finetune").main([*map(str, options), "--output_dir", str(output_dir)])
    return output_dir
