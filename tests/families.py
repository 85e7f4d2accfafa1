"""The kinds of models that are tested alike. By itself, since conftest.py must not import what takes seconds."""

import itertools
from collections.abc import Callable, Iterable

import pytest

FAMILIES = ["mlp", "convnet", "timm/test_resnet", "timm/test_vit", "vit"]


def on_families(values: Iterable[str], quick: Callable[[str, str], bool]) -> list:
    """Each value with each family, for `parametrize`. All together take minutes: those not `quick` are slow tests."""
    pairs = itertools.product(values, FAMILIES)
    return [pytest.param(*pair, marks=[] if quick(*pair) else pytest.mark.slow) for pair in pairs]
