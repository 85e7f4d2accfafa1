"""Channels-last where convolutions prefer it, except where torch's kernels corrupt memory in this layout."""

import os
import subprocess
import sys

import pytest
from support import REPO
from torch import nn

from ftkit.models.anatomy import is_convolutional

# oneDNN takes the kernels for CPUs without AVX-512 on any CPU. A corrupted heap is often only noticed later.
TRAINING = """
import sys, torch
from support import train
train(sys.argv[1], "--dataset", "digits", "--max_train_samples", 32, "--max_steps", 3, "--eval_strategy", "no",
      "--load_best_model_at_end", "false", "--model", sys.argv[2], "--image_size", 32,
      "--per_device_train_batch_size", 8)
keep = [torch.empty(7 * i) for i in range(1000)]
"""


@pytest.mark.parametrize(
    ("layer", "in_channels_last"),
    [
        (nn.Conv2d(3, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1, stride=(1, 2)), False),
        (nn.Conv2d(3, 8, 1), True),
        (nn.Conv2d(3, 8, 3, stride=2), True),
        (nn.Conv2d(64, 8, 1, stride=2), True),
        (nn.Linear(3, 8), False),
    ],
    ids=str,
)
def test_the_layers_decide(layer, in_channels_last):
    assert is_convolutional(nn.Sequential(nn.Conv2d(3, 3, 3) if isinstance(layer, nn.Conv2d) else layer, layer)) == (
        in_channels_last
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["timm/mobileone_s0", "timm/repvgg_a0", "timm/fastvit_t8"])
def test_a_strided_convolution_on_the_pixels_trains(model, tmp_path):
    surroundings = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}
    surroundings["PYTHONPATH"] = os.pathsep.join([str(REPO), str(REPO / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path / "run"), model],
        env=surroundings, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
