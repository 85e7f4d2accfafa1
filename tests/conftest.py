"""Fixtures for all tests. The Hub is switched off and every cache lies in a temporary folder."""

import os
import re
import tempfile

import pytest

# The libraries read these when they are imported, so they are set before anything is.
_CACHES = tempfile.TemporaryDirectory(prefix="ftkit-tests-", ignore_cleanup_errors=True)
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)
os.environ |= {"HF_HOME": _CACHES.name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture
def refused():
    """`with refused("a", "b"):` expects a `UserError` whose message holds every one of the words, in any order."""
    from ftkit.errors import UserError

    def expect(*words):
        return pytest.raises(UserError, match="(?s)" + "".join(f"(?=.*{re.escape(str(word))})" for word in words))

    return expect


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A finished run on the embedded digits: the default recipe with fewer epochs. Not to be written to."""
    from support import finetune

    return finetune(tmp_path_factory.mktemp("digits") / "run", "--num_train_epochs", "6")
