"""Helpers that the tests share."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np

from ftkit.evaluation.predictions import read_predictions

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
    stored, again = (read_predictions(run / place).probabilities for place in ("evaluation", "again"))
    np.testing.assert_allclose(again, stored, atol=1e-5)


def interrupt(run: Path, keep: int = -1) -> None:
    """Make a finished run one that was killed in its last stage, which has only its first `keep` checkpoints."""
    last = max((run / "stages").iterdir(), key=lambda stage: int(stage.name.partition("-")[0]))
    checkpoints = sorted(last.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(checkpoints) > 1
    for path in (run / "model", run / "evaluation", *checkpoints[keep:]):
        shutil.rmtree(path)
    for path in (run / "run.json", last / "result.json", last / "model.safetensors"):
        path.unlink()


def finetune(output_dir: Path, *options: object) -> Path:
    """Run the main job in this process; returns the run's folder."""
    load_recipe_script("finetune").main([*map(str, options), "--output_dir", str(output_dir)])
    return output_dir
