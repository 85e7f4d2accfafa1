"""Test-time augmentation: a second evaluation beside the plain one."""

import json

import numpy as np
import torch
from support import finetune, load_recipe_script
from transformers import ViTImageProcessor

from ftkit.config import DataArguments
from ftkit.data.feeding.tensors import Viewed, image_tensors
from ftkit.data.sources.load import load_data
from ftkit.evaluation.predictions import read_predictions


def probabilities(folder):
    return read_predictions(folder).probabilities


def test_flip_averaging_stands_beside_the_plain_evaluation(whole, tmp_path, capsys):
    options = ("--config", whole / "config.yaml", "--test_time_augmentation", "flip_and_shift")
    run = finetune(tmp_path / "run", *options)
    shown = capsys.readouterr().out
    places = ("evaluation", "evaluation/flip", "evaluation/flip_and_shift")
    plain, averaged, shifted = map(probabilities, (run / place for place in places))
    assert not np.allclose(shifted, averaged, atol=0.01)
    assert np.array_equal(plain, probabilities(whole / "evaluation"))
    assert not np.allclose(plain, averaged, atol=0.01)
    labels = read_predictions(run / "evaluation").labels
    accuracy, with_shifts = (float((some.argmax(1) == labels).mean()) for some in (averaged, shifted))
    expected = {"flip": accuracy, "flip_and_shift": with_shifts}
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["test_time_accuracy"] == expected
    assert json.loads((run / "run.json").read_text())["test"]["test_time_accuracy"] == expected
    assert f"{accuracy:.4f} with test_time_augmentation: flip" in shown
    report = (run / "evaluation" / "report.md").read_text()
    assert f"| accuracy with test-time augmentation | {accuracy:.4f} |" in report

    load_recipe_script("eval").main(["--model", str(run), "--output_dir", str(tmp_path / "again")])
    np.testing.assert_allclose(probabilities(tmp_path / "again" / "flip"), averaged, atol=1e-5)
    np.testing.assert_allclose(probabilities(tmp_path / "again" / "flip_and_shift"), shifted, atol=1e-5)


def test_views_are_shifted_and_mirrored(tmp_path):
    rows = load_data(DataArguments(dataset="digits"))["test"]
    images = image_tensors(rows, ViTImageProcessor(size={"height": 8, "width": 8}), 1, cache_dir=str(tmp_path))
    plain = images.images[:5]
    for by in (-1, 1):
        view = Viewed(images, False, by).__getitems__([0, 1, 2, 3, 4])["pixel_values"]
        ends = (slice(1, None), slice(None, -1)) if by == 1 else (slice(None, -1), slice(1, None))
        assert torch.equal(view[:, :, ends[0], ends[0]], plain[:, :, ends[1], ends[1]])  # by = 1: down and right
        both = Viewed(images, True, by).__getitems__([0, 1, 2, 3, 4])["pixel_values"]
        assert torch.equal(both, view.flip(3))
