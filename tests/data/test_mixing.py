"""Mixup and cutmix: the mixed images and labels, which depend on neither batch nor process."""

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch.nn import functional as F

from ftkit.data.augmentation.mixing import Mixing
from ftkit.data.feeding.loader import EpochBatches

ROWS = torch.randperm(65, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(65, 3, 12, 10, generator=torch.Generator().manual_seed(1))
SHARES = F.one_hot(torch.arange(65) % 7, 7).float()
BOTH = [(0.2, 0), (0, 1.0), (0.4, 1.0)]


@pytest.mark.parametrize("alphas", BOTH)
def test_mixing_does_not_depend_on_the_batch(alphas):
    images, shares = Mixing(*alphas)(IMAGES, SHARES, ROWS, 5, 3)
    assert images.shape == (64, 3, 12, 10) and shares.shape == (64, 7)
    assert not torch.equal(images, IMAGES[:-1])
    for size in (1, 5, 64):
        for begin in range(0, 64, size):
            part = slice(begin, min(begin + size, 64) + 1)
            some, theirs = Mixing(*alphas)(IMAGES[part], SHARES[part], ROWS[part], 5, 3)
            assert torch.equal(some, images[begin : begin + size]) and torch.equal(
                theirs, shares[begin : begin + size]
            )
    for key in ((6, 3), (5, 4)):
        assert not torch.equal(Mixing(*alphas)(IMAGES, SHARES, ROWS, *key)[0], images)


def test_mixing_uses_no_global_generator_and_never_waits_for_the_device():
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    images, shares = Mixing(0.2, 1.0)(*(x.to("meta") for x in (IMAGES, SHARES, ROWS)), 5, 3)  # it has no values
    Mixing(0.2, 1.0)(IMAGES, SHARES, ROWS, 5, 3)
    assert images.device == shares.device == torch.device("meta")
    assert np.array_equal(states[0], np.random.get_state()[1]) and torch.equal(states[1], torch.get_rng_state())


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_mixup_shares_are_beta_distributed(alpha):
    rows = torch.arange(20_001)
    images = torch.stack([torch.zeros(20_001), torch.ones(20_001)])[rows % 2, rows].view(-1, 1, 1, 1)
    shares = F.one_hot(rows % 2, 2).float()
    mixed, labels = Mixing(alpha, 0)(images, shares, rows, 0, 0)
    torch.testing.assert_close(mixed.flatten(), labels[:, 1])  # what is 1 in the image is the share of class 1
    stays = labels[torch.arange(20_000), rows[:-1] % 2]
    for point in (1e-6, 0.001, 0.1, 0.4, 0.5, 0.8, 0.999):
        expected = beta(alpha, alpha).cdf(point)
        spread = 4 * np.sqrt(expected * (1 - expected) / 20_000) + 1 / 4096  # a piece of the table
        assert abs((stays <= point).double().mean() - expected) < spread


def test_cutmix_pastes_a_box_whose_area_is_its_share():
    mixed, labels = Mixing(0, 1.0)(IMAGES, SHARES, ROWS, 5, 3)
    areas = []
    for own, following, image, label in zip(IMAGES, IMAGES[1:], mixed, labels, strict=False):
        pasted = (image == following).all(0)
        assert torch.equal(torch.where(pasted, following, own), image)
        box = pasted.any(1).sum() * pasted.any(0).sum()
        assert pasted.sum() == box  # a rectangle
        areas.append(box.item())
        assert label.sum() == pytest.approx(1) and label.max() == pytest.approx(max(box / 120, 1 - box / 120).item())
    assert len(set(areas)) > 20 and min(areas) < 10 and max(areas) > 60


def test_the_box_lies_anywhere_and_has_the_right_size():
    """A box around a random pixel is cut off at the edge, so less than half of the area is pasted on average."""
    rows = torch.arange(20_001)
    zeros_and_ones = (rows % 2).float().view(-1, 1, 1, 1).expand(-1, 1, 9, 9)
    mixed, _ = Mixing(0, 1.0)(zeros_and_ones, F.one_hot(rows % 2, 2).float(), rows, 0, 0)
    pasted = (mixed != zeros_and_ones[:-1]).double().mean(0)[0]
    assert pasted.argmax() == 40  # the pixel in the middle
    torch.testing.assert_close(pasted, pasted.T, atol=0.02, rtol=0)
    assert 0.25 < pasted.mean() < 0.45


def test_each_image_draws_one_of_the_two():
    mixed, _ = Mixing(0.4, 1.0)(IMAGES, SHARES, ROWS, 5, 3)
    cut = [
        ((image == own) | (image == next_)).all() for image, own, next_ in zip(mixed, IMAGES, IMAGES[1:], strict=False)
    ]
    assert 16 < sum(cut) < 48


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_following_image_does_not_depend_on_the_batch(processes):
    """Nor on the number of processes, nor on whether the last batch, which is not full, is used."""
    (whole,) = EpochBatches(50, 50, 7, following=True)
    after = dict(zip(whole.rows.tolist(), [*whole.rows.tolist()[1:], whole.following.item()], strict=True))
    assert whole.following == whole.rows[0]
    for size, drop in ((1, False), (8, False), (8, True), (49, False)):
        for process in range(processes):
            for batch in EpochBatches(50, size, 7, process, processes, drop, following=True):
                rows = [*batch.rows.tolist(), batch.following.item()]
                assert [after[row] for row in rows[:-1]] == rows[1:]
    assert all(batch.following is None for batch in EpochBatches(50, 8, 7))
