"""Two mechanisms in one run: both are active, or the pair is refused before anything starts."""

import pytest
import torch
from mechanisms import PAIRS, run_pair
from torch import nn

from ftkit.training.loop.ema import WeightAverage

QUICK = (("adalora", "skip"), ("ema", "compile"), ("accumulation", "auto"), ("mixup", "rollback"))


@pytest.mark.parametrize(
    "pair", [pytest.param(p, id="-".join(p), marks=[] if p in QUICK else pytest.mark.slow) for p in PAIRS]
)
def test_both_are_active(tmp_path, mlp, pair):
    run_pair(tmp_path / "run", mlp, pair, "--per_device_train_batch_size", 20)


def test_the_average_of_shared_weights_is_saved_once(tmp_path):
    """safetensors refuses a tensor with two names, which would cost the checkpoint."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    average = WeightAverage(model, 0.5)
    for _ in range(3):
        with torch.no_grad():
            model[0].weight += 1
        average.on_step_end(None, None, None)
    average.save(tmp_path)
    expected = average.averaged[0].weight.clone()
    other = WeightAverage(model, 0.5)
    other.load(tmp_path)
    assert torch.equal(other.averaged[1].weight, expected) and not torch.equal(expected, model[0].weight)
