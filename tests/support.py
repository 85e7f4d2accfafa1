"""Helpers that the tests share."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from ftkit.evaluation.gallery import thumbnail
from ftkit.evaluation.predictions import read_predictions, write_metrics, write_predictions
from ftkit.tasks import Predictions, SingleLabel

REPO = Path(__file__).resolve().parents[1]
TEXTS = [REPO / "README.md", *sorted((REPO / "recipes").rglob("*.md"))]  # what users read


sys.path.insert(0, str(REPO / "recipes"))  # a script finds its neighbours, as when it is started


def load_recipe_script(name: str) -> ModuleType:
    """The script `recipes/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", REPO / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_reloads(run: Path) -> None:
    """`recipes/eval.py`, from the saved model alone, gives the probabilities that the run stored."""
    load_recipe_script("eval").main(["--model", str(run), "--output_dir", str(run / "again")])
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


def random_predictions(names: list[str], n: int, seed: int = 0, skill: float = 2.0) -> Predictions:
    """Predictions that are right more often than not; the labels depend on `n` and the classes alone."""
    labels = np.random.default_rng(99).integers(0, len(names), n)
    logits = np.random.default_rng(seed).normal(size=(n, len(names))).astype(np.float32)
    logits[np.arange(n), labels] += skill
    return Predictions(np.arange(n), np.arange(n, dtype=np.uint64) * 7 + 1, labels, logits, SingleLabel(names))


def store(folder: Path, test: Predictions, validation: Predictions | None = None, **record) -> Path:
    """A folder like one that recipes/eval.py writes, or, with `method` and so on, like a run's."""
    write_predictions(folder, test)
    if validation is not None:
        write_predictions(folder / "validation", validation)
    (folder / "gallery").mkdir()
    for position in np.concatenate(list(test.task.gallery(test).values())):
        Image.new("L", (28, 28), int(position) % 256).save(thumbnail(folder, test, position))
    write_metrics(folder)
    counts = test.task.counts(torch.from_numpy(test.labels))
    about = {
        "model": "a model", "dataset": "some data", "evaluated_split": "test", "splits": {"test": len(test)},
        "class_counts": {"test": counts}, "duplicates": [], "skipped_images": {}, "command": "python", "commit": None,
        "python": "3", "versions": {"torch": "2"}, "platform": "here", "dataset_fingerprints": {"test": "f"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about | record))
    return folder
