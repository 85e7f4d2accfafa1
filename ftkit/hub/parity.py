"""The gate before a push: loaded without ftkit, the model must give the logits of the evaluation."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ftkit.data.pixels.images import to_mode
from ftkit.data.pixels.kinds import KINDS, OTHER_ELSEWHERE, kinds_of
from ftkit.errors import UserError, listed
from ftkit.evaluation.gallery import sample_files
from ftkit.evaluation.predictions import read_predictions
from ftkit.training.provenance import file_hashes

_CLEAN_LOAD = Path(__file__).with_name("clean_load.py")
_TOLERANCE = 1e-3  # share of the logits' standard deviation: room for other kernels and orders of summation


def check_parity(model: Path, evaluation: Path, record: dict[str, Any]) -> float:
    """Check that a clean process, without ftkit and offline, gives the evaluation's logits for the stored samples.

    Args:
        model: the folder to push.
        evaluation: the folder with the stored predictions and samples.
        record: `run.json`, which lists the model's files and their hashes.

    Returns:
        The largest difference of a logit.

    Raises:
        UserError: the model does not load, lacks weights, or has other labels or logits; the message says which.
    """
    predictions = read_predictions(evaluation)
    samples = sample_files(evaluation, predictions)
    if missing := [path for path in samples.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: run recipes/eval.py again, or push a complete run")
    remote = any(model.glob("modeling_*.py"))
    answer = _load_elsewhere(model, list(samples.values()), remote)
    if answer["missing"]:
        raise UserError(
            f"{model} must not be pushed: {len(answer['missing'])} weights are not in its files and would be "
            f"drawn at random: {listed(answer['missing'])}{_changed(model, record)}"
        )
    if answer["labels"] != predictions.task.names:
        there, here = answer["labels"], predictions.task.names
        wrong = next((pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]), (len(here), len(there)))
        raise UserError(
            f"{model} must not be pushed: its labels are not those of the evaluation: {wrong[1]!r} instead of "
            f"{wrong[0]!r}{_changed(model, record)}"
        )
    expected, given = predictions.logits[list(samples)], np.array(answer["logits"])
    differences = np.abs(given - expected).max(axis=1)
    allowed = _TOLERANCE * max(float(expected.std()), 1e-3)
    if not (differences <= allowed).all():
        worst, file = max(zip(differences.tolist(), samples.values(), strict=True))
        others = [path for path, same in zip(samples.values(), differences <= allowed, strict=True) if not same]
        raise UserError(
            f"{model} must not be pushed: without ftkit it gives other logits than the evaluation, for "
            f"{len(others)} of {len(samples)} test images, by up to {worst:.3g} ({file}; {allowed:.2g} is allowed): "
            f"{_why(others)}{_changed(model, record)}"
        )
    return float(differences.max())


def _why(files: list[Path]) -> str:
    """Why a plain pipeline gives other logits for these files."""
    kinds: Counter[str] = Counter()
    for file in files:
        with Image.open(file) as image:
            kinds.update(set(kinds_of(image, to_mode(image, 3))) & OTHER_ELSEWHERE)
    if kinds.total() < len(files):  # the pixels of some are the same
        return "its weights, or how it resizes or normalises pixels, are different"
    listed = "; ".join(f"{n} of them {KINDS[kind]}" for kind, n in kinds.items())
    return f"{listed}. Convert the images to 8-bit files without transparency, and train on these"


def _load_elsewhere(model: Path, files: list[Path], trust_remote_code: bool) -> dict[str, Any]:
    job = {"folder": str(model.absolute()), "files": [str(path.absolute()) for path in files]}
    with tempfile.TemporaryDirectory() as empty:
        hidden = {"PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        # A fresh cache: code copied earlier from the model's folder must not hide the current code.
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": empty, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-I", str(_CLEAN_LOAD)],
            input=json.dumps(job | {"trust_remote_code": trust_remote_code}),
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{model} must not be pushed: it does not load without ftkit: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _changed(model: Path, record: dict[str, Any]) -> str:
    """The files that changed since the run wrote them, as the end of a message; empty if none did."""
    written, found = record.get("model_files", {}), file_hashes(model)
    changed = [name for name, digest in written.items() if found.get(name) != digest]
    return f"; changed since the run: {', '.join(changed)}" if changed else ""
