"""A better method is found if there is one, and rarely claimed if there is none."""

import numpy as np
import pytest
from scipy.stats import binom

from ftkit.statistics.significance import compare, holm

PAIRS = 200
MOST = binom.isf(0.005, PAIRS, 0.05)  # false claims among pairs of equal methods, at a true rate of 5%


def runs(rng: np.random.Generator, seeds: int, images: np.ndarray, seed_spread: float, better: float = 0.0):
    """Whether each run is correct on each image: images differ in difficulty, seeds in luck."""
    chances = images + better + rng.normal(0, seed_spread, (seeds, 1)) + rng.normal(0, 0.9, (seeds, len(images)))
    return chances > 0


@pytest.mark.parametrize(
    ("seeds", "seed_spread"),
    [((1, 1), 0.0), ((3, 3), 0.0), ((3, 3), 0.05), ((3, 3), 0.3), ((2, 5), 0.1), ((1, 4), 0.1)],
)
def test_equal_methods_are_rarely_told_apart(seeds, seed_spread):
    rng, claimed = np.random.default_rng(7), 0
    for _ in range(PAIRS):
        images = rng.normal(2.5, 2.0, 2000)
        first, second = (runs(rng, n, images, seed_spread) for n in seeds)
        claimed += compare(first, second)["p"] < 0.05
    assert claimed <= MOST


@pytest.mark.parametrize("seeds", [1, 3])
def test_two_points_on_ten_thousand_images_are_found(seeds):
    rng, found, differences = np.random.default_rng(8), 0, []
    for _ in range(20):
        images = rng.normal(2.5, 2.0, 10_000)
        result = compare(runs(rng, seeds, images, 0.02), runs(rng, seeds, images, 0.02, better=0.24))
        found += result["p"] < 0.05 and result["interval"][0] > 0
        differences.append(result["difference"])
    assert np.mean(differences) == pytest.approx(0.02, abs=0.003)
    assert found == 20


def test_mcnemar_depends_only_on_disagreements():
    first, second = np.zeros((1, 1000), bool), np.zeros((1, 1000), bool)
    first[0, :5] = second[0, 5:20] = True
    result = compare(first, second)
    assert result["test"] == "McNemar" and result["difference"] == pytest.approx(0.01)
    assert result["p"] == pytest.approx(2 * binom.cdf(5, 20, 0.5))
    assert result["interval"][0] < 0.01 < result["interval"][1]
    same = compare(first, first)
    assert (same["difference"], same["p"]) == (0, 1) and same["interval"][0] < 0 < same["interval"][1]
    assert compare(np.repeat(first, 2, 0), np.repeat(first, 2, 0))["p"] == 1


def test_the_interval_of_several_runs_covers_the_difference():
    rng, held = np.random.default_rng(9), 0
    for _ in range(PAIRS):
        images = rng.normal(2.5, 2.0, 2000)
        low, high = compare(runs(rng, 3, images, 0.1), runs(rng, 3, images, 0.1))["interval"]
        held += low <= 0 <= high
    assert held >= PAIRS - MOST


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
