"""Convolutions run in channels_last, and the saved weights are contiguous."""

import torch
from safetensors.torch import load_file
from support import train

from ftkit.training.loop.inputs import Preparation
from ftkit.training.loop.trainer import ImageTrainer


def test_images_weights_and_gradients_have_the_same_memory_format(tmp_path, monkeypatch):
    step, prepare, seen = ImageTrainer.training_step, Preparation.__call__, []

    def watched_step(self, model, inputs, *more):
        loss = step(self, model, inputs, *more)
        weights = [parameter for parameter in model.parameters() if parameter.ndim == 4]
        seen.append(all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights))
        seen.append(all(weight.grad.stride() == weight.stride() for weight in weights))  # else DDP warns, and copies
        return loss

    def watched_prepare(self, batch):
        prepared = prepare(self, batch)
        _, _, height, width = prepared["pixel_values"].shape
        seen.append(prepared["pixel_values"].stride() == (height * width, 1, width, 1))  # grey images too
        return prepared

    monkeypatch.setattr(ImageTrainer, "training_step", watched_step)
    monkeypatch.setattr(Preparation, "__call__", watched_prepare)
    run = train(tmp_path / "run", "--max_steps", 3, "--eval_strategy", "no").folder
    assert seen
    assert all(seen)
    assert all(weight.is_contiguous() for weight in load_file(run / "model" / "model.safetensors").values())
