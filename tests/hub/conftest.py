"""Fixtures for the tests of the gate and of pushing."""

import shutil
import ssl
from functools import cache

import huggingface_hub.constants as constants
import pytest
from hub_server import HubServer


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the finished run, without its checkpoints, to be changed."""
    shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("stages"))
    return tmp_path / "run"


@pytest.fixture
def hub(monkeypatch):
    """A Hub for this process, without waits between attempts."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        # Each new client reads the certificates of all authorities, which takes 20 ms.
        monkeypatch.setattr("ssl.create_default_context", cache(ssl.create_default_context))
        yield server
