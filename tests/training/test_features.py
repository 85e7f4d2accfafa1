"""Linear probes on cached features: a frozen body computes them once."""

import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import KEEP_ALL, TINY, assert_reloads, assert_saved_is_trained, finetune, interrupt, train, weights

from ftkit.run import evaluate

PROBE = ["--method", "linear_probe", *TINY, "--learning_rate", 0.01]


def cached_features(cache):
    return sorted(cache.glob("features-*"))


def test_features_give_the_same_predictions_as_the_body(folder, tmp_path):
    cache = tmp_path / "cache"
    options = [*PROBE, "--model", folder, "--cache_dir", cache]
    fast = train(tmp_path / "fast", *options)
    slow = train(tmp_path / "slow", *options, "--cache_features", "false")
    assert len(cached_features(cache)) == 2  # of train and validation
    for job in (fast, slow):
        evaluate(job)
    found, expected = (job.predicted["plain"].probabilities for job in (fast, slow))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert_saved_is_trained(fast)


def test_the_cache_is_keyed_by_weights_pixels_and_normalisation(convnet, tmp_path):
    cache = tmp_path / "cache"
    options = [*PROBE, "--model", convnet, "--cache_dir", cache]
    runs = [train(tmp_path / str(seed), *options, "--seed", seed).folder for seed in range(2)]
    assert len(cached_features(cache)) == 2  # another seed has another head, on the same features
    train(tmp_path / "normalised", *options, "--image_mean", "0.2", "--image_std", "0.4")
    assert len(cached_features(cache)) == 4
    train(tmp_path / "fewer", *options, "--max_train_samples", "90")
    assert len(cached_features(cache)) == 5
    other = train(
        tmp_path / "other", "--model", runs[0], "--method", "full", "--max_steps", "1", "--cache_dir", cache
    ).folder
    train(tmp_path / "moved", *options, "--model", other)
    assert len(cached_features(cache)) == 7


@pytest.fixture(scope="module")
def cached(convnet, tmp_path_factory):
    """The options of a probe, and the cache with its features of both splits. Read-only."""
    folder = tmp_path_factory.mktemp("cached")
    options = [*PROBE, "--model", convnet, "--num_train_epochs", 1]
    train(folder / "run", *options, "--cache_dir", folder / "cache")
    assert len(cached_features(folder / "cache")) == 2
    return options, folder / "cache"


@pytest.fixture
def features_differ(cached, tmp_path):
    """`features_differ(*options)` asserts that the features of both splits are computed again."""

    def check(*more):
        options, cache = cached[0], shutil.copytree(cached[1], tmp_path / "cache")
        train(tmp_path / "run", *options, "--cache_dir", cache, *more)
        assert len(cached_features(cache)) == 4

    return check


def test_features_that_the_disk_cannot_hold(folder, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(
        "ftkit.data.pixels.cache.free_bytes", lambda folder: 1000 if "features" in folder.name else 1 << 30
    )
    options = [*PROBE, "--model", folder, "--cache_dir", tmp_path / "cache"]
    with refused("the features need", "--cache_features false") as refusal:
        train(tmp_path / "run", *options)
    train(
        tmp_path / "run", *options, *(word for key, value in refusal.value.fix.items() for word in (f"--{key}", value))
    )


@pytest.mark.parametrize("package", ["torch", "timm", "transformers", "peft"])
def test_features_of_another_version_are_computed_again(features_differ, monkeypatch, package):
    monkeypatch.setattr(sys.modules[package], "__version__", "99.0.0")
    features_differ()


def test_features_of_other_threads_are_computed_again(features_differ):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        features_differ()
    finally:
        torch.set_num_threads(threads)


def test_features_in_tf32_are_computed_again(features_differ):
    backend, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        backend.fp32_precision = "tf32"
        features_differ()
    finally:
        backend.fp32_precision = before


def test_features_of_other_batches_are_computed_again(features_differ):
    features_differ("--per_device_eval_batch_size", 16)


def test_lp_ft_starts_from_the_probe(convnet, tmp_path):
    options = ["--model", convnet, *PROBE[2:]]
    probe = train(tmp_path / "probe", *options, "--method", "linear_probe").folder
    both = train(tmp_path / "both", *options, "--method", "lp_ft").folder
    first = load_file(both / "stages" / "0-head" / "model.safetensors")
    alone = load_file(probe / "model" / "model.safetensors")
    assert all((first[name] == alone[name]).all() for name in alone)


@pytest.mark.parametrize(
    "options",
    [["--augment", "flip"], ["--mixup", "0.2"], ["--train_batchnorm_stats", "true"], ["--dropout", "0.5"]],
    ids=lambda options: options[0],
)
def test_what_changes_from_step_to_step_runs_the_body(convnet, tmp_path, options):
    cache = tmp_path / "cache"
    job = train(tmp_path / "run", *PROBE, "--model", convnet, "--cache_dir", cache, *options)
    assert not cached_features(cache)
    assert_saved_is_trained(job)  # on plain pixels
    assert job.stages[0]["trained_parameters"] == 970


def test_a_probe_resumes_to_the_same_bytes(convnet, tmp_path):
    options = [*PROBE, "--model", convnet, *KEEP_ALL]
    whole = train(tmp_path / "whole", *options).folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part)
    train(part, *options, "--resume_from_checkpoint", "true")
    assert weights(part) == weights(whole)


def test_a_transform_of_single_images_runs_the_body(convnet, tmp_path, capsys):
    changing = ("--image_transform", '{"hflip": 0.5}', "--dataloader_num_workers", 0)
    cache, options = tmp_path / "cache", [*PROBE, "--model", convnet, "--classes", "0", "1", "--max_train_samples", 20]
    run = finetune(tmp_path / "run", *options, *changing, "--cache_dir", cache)
    assert "stream: image_transform changes single images" in capsys.readouterr().out
    assert not cached_features(cache)
    assert_reloads(run)  # on plain pixels
