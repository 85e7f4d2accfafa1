"""`auto_find_batch_size`: a batch that does not fit is computed in parts, and the optimizer sees the same batch."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import MLP, train, weights

from ftkit.models.modeling_mlp import MLPConfig, MLPForImageClassification
from ftkit.run import evaluate
from ftkit.training.loop.micro_batches import parts_that_fit

SMALL = ["--max_train_samples", 160, "--num_train_epochs", 2, "--per_device_train_batch_size", 32]
SMALL_MLP = [*MLP, *SMALL]


@pytest.fixture
def memory(monkeypatch):
    """`memory(n)` lets no more than n images fit into an MLP in training; returns the sizes that were tried."""
    sizes, forward = [], MLPForImageClassification.forward

    def limit(images, evaluated=False):
        def limited(self, pixel_values, **options):
            takes_memory = pixel_values.device.type != "meta"
            if takes_memory and (self.training or evaluated):
                sizes.append(len(pixel_values))
                if len(pixel_values) > images:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(self, pixel_values, **options)

        monkeypatch.setattr(MLPForImageClassification, "forward", limited)
        return sizes

    return limit


def test_a_batch_in_parts_gives_the_same_model(tmp_path, memory):
    whole = train(tmp_path / "whole", *SMALL_MLP).folder
    sizes = memory(10)
    run = train(tmp_path / "run", *SMALL_MLP, "--auto_find_batch_size", "true").folder
    assert sizes[:3] == [32, 16, 8] and set(sizes[3:]) == {8}
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (whole, run))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_an_evaluation_in_parts_gives_the_same_predictions(tmp_path, memory):
    whole = train(tmp_path / "whole", *SMALL_MLP)
    evaluate(whole)
    sizes = memory(10, evaluated=True)
    parts = train(tmp_path / "run", *SMALL_MLP, "--auto_find_batch_size", "true", "--per_device_eval_batch_size", 64)
    evaluate(parts)
    assert 64 in sizes and 16 in sizes and sizes[-1] <= 8
    expected, found = (job.predicted["plain"] for job in (whole, parts))
    np.testing.assert_array_equal(found.index, expected.index)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_features_in_parts_are_the_same(tmp_path, memory, mlp):
    options = ["--model", mlp, "--method", "linear_probe", "--classes", 0, 1, *SMALL]
    whole = train(tmp_path / "whole", *options, "--cache_dir", tmp_path / "one").folder
    sizes = memory(10, evaluated=True)
    options += ["--auto_find_batch_size", "true", "--per_device_eval_batch_size", 64]
    run = train(tmp_path / "run", *options, "--cache_dir", tmp_path / "two").folder
    assert 64 in sizes and 16 in sizes
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (whole, run))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_memory_for_an_existing_optimizer_state_is_not_reserved_again(monkeypatch):
    model = MLPForImageClassification(MLPConfig(image_size=8, hidden_sizes=[16]))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, reserved = {"pixel_values": torch.zeros(4, 1, 8, 8), "labels": torch.zeros(4).long()}, []
    monkeypatch.setattr(torch, "empty_like", lambda like: reserved.append(like))

    def backward(part):
        model(**part).loss.backward()

    assert parts_that_fit(model, inputs, backward, optimizer) == 1 and len(reserved) == 2 * len(
        list(model.parameters())
    )
    backward(inputs)
    optimizer.step()
    assert parts_that_fit(model, inputs, backward, optimizer) == 1 and len(reserved) == 2 * len(
        list(model.parameters())
    )


def test_trying_what_fits_changes_nothing(tmp_path):
    """Neither BatchNorm's statistics nor dropout's random numbers."""
    options = ["--model", "convnet", *SMALL, "--dropout", 0.2, "--mixup", 0.2]
    whole, run = (
        train(tmp_path / "a", *options).folder,
        train(tmp_path / "b", *options, "--auto_find_batch_size", "true").folder,
    )
    assert weights(whole) == weights(run)


def test_not_even_one_image(tmp_path, memory, refused):
    memory(0)
    with refused("not even one image fits", "image_size"):
        train(tmp_path / "run", *SMALL_MLP, "--auto_find_batch_size", "true")


def test_another_error_is_not_mistaken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(MLPForImageClassification, "forward", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        train(tmp_path / "run", *SMALL_MLP, "--auto_find_batch_size", "true")
