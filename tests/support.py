"""What the tests share: options of small runs, ways to run and to interrupt them, and stored evaluations."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from transformers import pipeline

from ftkit import run as steps
from ftkit.data.feeding.engine import load_images
from ftkit.data.pixels.images import describe_images
from ftkit.evaluation.gallery import thumbnail
from ftkit.evaluation.predictions import read_predictions, write_metrics, write_predictions
from ftkit.models.classifier import Classifier
from ftkit.tasks import Predictions, SingleLabel

REPO = Path(__file__).resolve().parents[1]
TEXTS = [REPO / "README.md", *sorted((REPO / "recipes").rglob("*.md"))]  # what users read
DIGITS = [str(digit) for digit in range(10)]  # the classes of the embedded images

# Options of small runs on the embedded digits. Where one is given twice, the last counts.
TINY = ["--max_train_samples", 100, "--num_train_epochs", 2]
MLP = ["--model", "mlp", "--model_args", '{"hidden_sizes": [16]}']
# Hyperparameters with which small runs learn, as in the default recipe; a test's own options override them.
LEARNS = [
    "--num_train_epochs=15", "--per_device_train_batch_size=32", "--learning_rate=0.003", "--weight_decay=0.01",
    "--lr_scheduler_type=cosine", "--warmup_steps=0.1", "--label_smoothing_factor=0.1",
    "--metric_for_best_model=loss",
]  # fmt: skip
KEEP_ALL = ["--save_total_limit", 99]
KEEP_LAST = ["--load_best_model_at_end", "false"]
FOUR_EPOCHS = [*MLP, *KEEP_ALL, "--max_train_samples", 160, "--num_train_epochs", 4, "--metric_for_best_model", "loss"]

sys.path.insert(0, str(REPO / "recipes"))  # a script finds its neighbours, as when it is started


def load_recipe_script(name: str) -> ModuleType:
    """The script `recipes/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", REPO / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finetune(output_dir: Path, *options: object) -> Path:
    """Run recipes/finetune.py in this process, with its report; returns the run's folder."""
    load_recipe_script("finetune").main(_with_settings(options, output_dir))
    return output_dir


def train(output_dir: Path, *options: object) -> steps.Job:
    """The steps of recipes/finetune.py up to the saved model.

    Predictions and report, three quarters of the time of so small a run, are left out; no `run.json` is written.
    """
    recipe = load_recipe_script("finetune").DEFAULT_RECIPE
    job = steps.start(steps.parse_config(_with_settings(options, output_dir), recipe))
    steps.read_data(job)
    steps.build_classifier(job)
    steps.make_plan(job)
    with steps.own_folder(job):
        steps.train(job)
    job.classifier.save(job.folder / "model")
    return job


def _with_settings(options: Sequence[object], output_dir: Path) -> list[str]:
    """The command line of a run: without a recipe, with `LEARNS`."""
    words = [*map(str, options), "--output_dir", str(output_dir)]
    return words if any(word.startswith("--config") for word in words) else [*LEARNS, *words]


def weights(run: Path, name: str = "model") -> bytes:
    """The file of the weights in a run's folder, byte for byte; those of `adapter_model` if it says so."""
    return (run / "model" / f"{name}.safetensors").read_bytes()


def stage_results(run: Path) -> list[dict[str, Any]]:
    """What a run keeps of each of its finished stages, as in its `run.json`."""
    return [json.loads((stage / "result.json").read_text()) for stage in _stages(run)]


def train_log(run: Path, stage: int = -1) -> list[dict[str, Any]]:
    """The lines that the trainer logged in a stage of a run, by its number; -1 is the last one."""
    return json.loads((_stages(run)[stage] / "trainer_state.json").read_text())["log_history"]


def losses(run: Path, stage: int = -1) -> list[float]:
    """The losses of training that a stage of a run logged."""
    return [line["loss"] for line in train_log(run, stage) if "loss" in line]


def real_data(name: str) -> Path:
    """The folder of a data set in `FTKIT_DATA_DIR`; the test is skipped if it is missing."""
    folder = Path(os.environ.get("FTKIT_DATA_DIR", "")) / name
    if not os.environ.get("FTKIT_DATA_DIR") or not folder.is_dir():
        pytest.skip(f"needs the real data {name}: let FTKIT_DATA_DIR name a folder that holds {name}/")
    return folder


def assert_reloads(run: Path) -> None:
    """`recipes/eval.py`, from the saved model alone, gives the probabilities that the run stored."""
    load_recipe_script("eval").main(["--model", str(run), "--output_dir", str(run / "again")])
    stored, again = (read_predictions(run / place).probabilities for place in ("evaluation", "again"))
    np.testing.assert_allclose(again, stored, atol=1e-5)


def answers_here(model: Path, files: Sequence[Path], trust_remote_code: bool) -> dict[str, Any]:
    """What the clean process of the gate answers, by the same pipeline, without the seconds that it takes to start."""
    classify = pipeline("image-classification", str(model), function_to_apply="none", device="cpu")
    names = list(classify.model.config.id2label.values())
    scores = [{row["label"]: row["score"] for row in classify(str(file), top_k=len(names))} for file in files]
    return {"labels": names, "logits": [[row[name] for name in names] for row in scores], "missing": []}


def assert_saved_is_trained(job: steps.Job) -> None:
    """The model in a run's folder, a plain forward pass of it in float32, gives the logits of the one that trained.

    Images are read anew, by the image processor that lies beside it.
    """
    steps.evaluate(job)
    expected, saved, test = job.predicted["plain"], Classifier.load(str(job.folder)), job.dataset["test"]
    channels = saved.channels_of(describe_images(test))
    images = load_images(DatasetDict(test=test), saved.processor, channels, job.config.data, seed=0)["test"]
    with torch.no_grad():
        logits = saved.model.eval()(pixel_values=saved.normalize(images.sample(len(images)))).logits
    assert saved.task == expected.task
    assert np.array_equal(images.labels, expected.labels)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4, rtol=1e-4)


def _stages(run: Path) -> list[Path]:
    return sorted((run / "stages").iterdir(), key=lambda stage: int(stage.name.partition("-")[0]))


def interrupt(run: Path, keep: int = -1) -> None:
    """Make a finished run one that was killed in its last stage, which has only its first `keep` checkpoints."""
    last = _stages(run)[-1]
    checkpoints = sorted(last.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(checkpoints) > 1
    for path in (run / "model", *checkpoints[keep:]):
        shutil.rmtree(path)
    shutil.rmtree(run / "evaluation", ignore_errors=True)  # which `train` does not write
    (run / "run.json").unlink(missing_ok=True)
    for path in (last / "result.json", last / "model.safetensors"):
        path.unlink()


def noise_images(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    """Write PNG files of coloured noise, `<folder>/<number>.png`, as many as `counts` says; returns `root`.

    Args:
        size: height and width.
    """
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / folder / f"{number}.png")
    return root


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
