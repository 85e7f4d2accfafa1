"""Fixtures for the tests of the gate and of pushing."""

import shutil

import pytest


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the finished run, without its checkpoints, to be changed."""
    shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("stages"))
    return tmp_path / "run"
