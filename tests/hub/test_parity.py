"""The gate: a model that would answer differently elsewhere is not pushed."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ftkit.evaluation.report import read_record
from ftkit.hub.parity import check_parity


def check(run):
    return check_parity(run / "model", run / "evaluation", read_record(run))


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(run, part):
    weights = load_file(run / "model" / "model.safetensors")
    kept = {name: value for name, value in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, run / "model" / "model.safetensors", metadata={"format": "pt"})


def lose_the_head(run):
    without(run, "classifier")


def lose_the_statistics(run):
    without(run, "running_")


def normalise_otherwise(run):
    change_json(run / "model" / "preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.5] * 3)


def number_the_labels_otherwise(run):
    names = {"0": "1", "1": "0"} | {str(i): str(i) for i in range(2, 10)}
    change_json(run / "model" / "config.json", id2label=names, label2id={v: int(k) for k, v in names.items()})


def import_ftkit(run):
    path = run / "model" / "modeling_convnet.py"
    path.write_text("from ftkit.models.channels import match_channels as _  # noqa\n" + path.read_text())


def import_what_was_left_behind(run):
    path = run / "model" / "modeling_convnet.py"
    path.write_text(path.read_text().replace("import torch\n", "import torch\nfrom .elsewhere import thing\n", 1))


def change_a_weight(run):
    weights = load_file(run / "model" / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + np.float32(0.5) * np.arange(10, dtype=np.float32)
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})


def test_an_unchanged_run_passes(digits_run):
    assert check(digits_run) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_the_head, ["classifier.weight", "drawn at random", "changed since the run: model.safetensors"]),
        (lose_the_statistics, ["running_mean", "drawn at random"]),
        (normalise_otherwise, ["other logits than the evaluation", "changed since the run: preprocessor_config.json"]),
        (number_the_labels_otherwise, ["its labels are not those of the evaluation", "'1' instead of '0'"]),
        (import_ftkit, ["does not load without ftkit", "ftkit"]),
        (import_what_was_left_behind, ["does not load without ftkit", "elsewhere"]),
        (change_a_weight, ["other logits than the evaluation", "for 16 of 16 test images", "model.safetensors"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_model_is_not_pushed(run, refused, damage, words):
    damage(run)
    with refused("must not be pushed", *words):
        check(run)
