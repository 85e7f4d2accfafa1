"""The kinds of models that share tests. A module of its own, since conftest.py must import quickly."""

import itertools
from collections.abc import Callable, Iterable

import pytest

FAMILIES = ["mlp", "convnet", "timm/test_resnet", "timm/test_vit", "vit"]


def on_families(values: Iterable[str], quick: Callable[[str, str], bool]) -> list:
    """Each value with each family, for `parametrize`. All of them take minutes: those not `quick` are slow tests."""
    pairs = itertools.product(values, FAMILIES)
    return [pytest.param(*pair, marks=[] if quick(*pair) else pytest.mark.slow) for pair in pairs]
