"""Augmentation of a batch, against torchvision's for the same parameters; its numbers depend on nothing else."""

import numpy as np
import torch
from support import finetune
from torchvision.transforms.v2 import functional as TV

from ftkit.data.augment import augment, flip, random_bits, random_crop

ROWS = torch.arange(64)
IMAGES = torch.randint(0, 256, (64, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_flip_and_crop_are_torchvisions():
    bits = random_bits(1, 2, ROWS, "flip", 2)
    flipped, cropped = flip(IMAGES, bits), random_crop(IMAGES, bits)
    for image, left_right, shifted, (a, b) in zip(IMAGES, flipped, cropped, bits.tolist(), strict=True):
        assert torch.equal(left_right, TV.horizontal_flip(image) if a % 2 else image)
        top, left = a * 9 >> 32, b * 9 >> 32
        assert torch.equal(shifted, TV.crop(TV.pad(image, [4]), top, left, 9, 12))


def test_an_image_gets_the_same_in_any_batch():
    names = ["random_crop", "flip"]
    whole = augment(IMAGES, ROWS, names, seed=5, epoch=3)
    order = torch.randperm(64)
    parts = [augment(IMAGES[rows], ROWS[rows], names, seed=5, epoch=3) for rows in order.split(10)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert not torch.equal(whole, augment(IMAGES, ROWS, names, seed=5, epoch=4))
    assert not torch.equal(whole, augment(IMAGES, ROWS, names, seed=6, epoch=3))


def test_the_numbers_look_random():
    """Uniform by image and by epoch, and independent of the neighbour, the epoch, the seed and the operation."""
    rows = torch.arange(50_000)
    draws = [
        random_bits(*key, rows, name, 2).double().numpy() / 2**32
        for *key, name in ((1, 2, "flip"), (1, 3, "flip"), (2, 2, "flip"), (1, 2, "random_crop"))
    ]
    columns = np.concatenate([*draws, np.roll(draws[0], 1, axis=0)], axis=1)
    assert np.abs(np.histogram(columns, bins=16, range=(0, 1))[0] / columns.size * 16 - 1).max() < 0.02
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.025
    epochs = np.concatenate([random_bits(0, e, torch.tensor([7]), "flip", 1).numpy() & 1 for e in range(4000)])
    assert abs(epochs.mean() - 0.5) < 0.03


def test_a_run_with_augmentation_repeats_and_resumes(tmp_path):
    options = ["--max_train_samples", 96, "--num_train_epochs", 3, "--augment", "random_crop", "flip",
               "--save_total_limit", 9]  # fmt: skip
    whole, part = finetune(tmp_path / "whole", *options), finetune(tmp_path / "part", *options)
    plain = finetune(tmp_path / "plain", *options[:4])
    (part / "run.json").unlink()
    max(part.glob("stages/0-all/checkpoint-*"), key=lambda path: int(path.name[11:])).rename(tmp_path / "lost")
    finetune(part, *options, "--resume_from_checkpoint", "true")
    files = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, part, plain)]
    assert files[0] == files[1] != files[2]
