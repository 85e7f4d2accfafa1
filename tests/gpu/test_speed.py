"""The overhead of ftkit over the model on a GPU: each row alone on the card, both sides in one process.

pytest -m gpu tests/gpu/test_speed.py
"""

import os
import statistics
import time

import pytest
import torch
from torch import nn

from ftkit.evaluation.report import read_record
from ftkit.models.classifier import Classifier

pytestmark = pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="measures alone: run it without -n")


def seconds_a_step(step, count, warm_up=5):
    """The median over 5 rounds of `count` steps each, in seconds."""
    for _ in range(warm_up):
        step()
    rounds = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(count):
            step()
        torch.cuda.synchronize()
        rounds.append((time.monotonic() - started) / count)
    return statistics.median(rounds)


def test_mnist_epoch_against_a_bare_loop(train, digits28, measured):
    """Batches of 512, fp32, MLP 784-512-10."""
    options = [*digits28, "--model", "mlp", "--model_args", '{"hidden_sizes": [512]}', "--max_grad_norm", 0,
               "--per_device_train_batch_size", 512, "--eval_strategy", "no", "--save_strategy", "no", "--optim",
               "sgd", "--learning_rate", 0.1]  # fmt: skip
    train(*options, "--max_steps", 20, folder="warm-up")
    record = read_record(train(*options, "--num_train_epochs", 5))
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)).cuda()
    count = record["splits"]["train"]
    images, labels = torch.rand(count, 1, 28, 28, device="cuda"), torch.randint(10, (count,), device="cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step():
        rows = torch.randint(count, (512,), device="cuda")
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()

    own = record["stages"][0]["seconds"] / record["stages"][0]["steps"]
    bare = seconds_a_step(step, 100)
    measured(step_ms=round(1000 * own, 3), bare_step_ms=round(1000 * bare, 3), ratio=round(own / bare, 2))


@pytest.mark.parametrize("engine", ["tensor", "stream"])
def test_lite0_against_random_tensors(train, photos, lite0, measured, engine):
    """Batches of 64 at 224 pixels, bf16, full fine-tuning: the overhead of the data."""
    options = [*photos, "--model", lite0, "--method", "full", "--data_engine", engine, "--bf16", "true",
               "--per_device_train_batch_size", 64, "--dataloader_drop_last", "true", "--augment", "flip",
               "--eval_strategy", "no", "--save_strategy", "no", "--max_grad_norm", 0]  # fmt: skip
    train(*options, "--max_steps", 6, folder="warm-up")
    stage = read_record(train(*options, "--num_train_epochs", 40))["stages"][0]
    model = Classifier.load(lite0).model.cuda().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(64, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(2, (64,), device="cuda")

    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images).logits, labels)
        loss.backward()
        optimizer.step()

    own, bare = stage["steps"] * 64 / stage["seconds"], 64 / seconds_a_step(step, 10)
    measured(own=round(own), random_tensors=round(bare), ratio=round(own / bare, 2),
             waiting_for_data=stage["waiting_for_data"])  # fmt: skip
