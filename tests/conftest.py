"""Fixtures for all tests. The Hub is switched off, and every cache is in a temporary folder."""

import gc
import logging
import os
import re
import signal
import tempfile

import pytest
from families import FAMILIES

# The libraries read these on import, so they are set first.
_CACHES = tempfile.TemporaryDirectory(prefix="ftkit-tests-", ignore_cleanup_errors=True)
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for each of pytest-xdist's workers
os.environ |= {"HF_HOME": _CACHES.name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _slow_ones_run(config):
    """Whether `-m` names them, or the real data is available, as in `.ci/run`."""
    return bool("slow" in config.option.markexpr or os.environ.get("FTKIT_DATA_DIR"))


def pytest_report_header(config):
    if not _slow_ones_run(config):
        return "without the slow tests: `pytest -m slow` runs them; FTKIT_DATA_DIR is the folder of the real data"


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Importing makes no garbage, and looking for it takes a sixth of the time; what is imported never becomes any."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config, items):
    if not _slow_ones_run(config):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep neighbouring tests in one of `-n`'s workers: it sets up the fixtures that they share only once."""
    if config.getoption("dist") == "load":
        from xdist.scheduler import WorkStealingScheduling

        return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal():
    """Restore handlers of signals that are ignored in the background and under `nohup`: subprocesses inherit that."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def files_are_not_flushed():
    """No test survives a power failure, and half of a small run's time in system calls is `os.fsync`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def refused():
    """`with refused("a", "b"):` expects a `UserError` whose message contains all of the words, in any order."""
    from ftkit.errors import UserError

    def expect(*words):
        return pytest.raises(UserError, match="(?s)" + "".join(f"(?=.*{re.escape(str(word))})" for word in words))

    return expect


@pytest.fixture
def logged(caplog, monkeypatch):
    """`logged()` is what ftkit has logged since the test began or asked last; for runs without a console."""
    monkeypatch.setattr(logging.getLogger("ftkit"), "propagate", True)
    caplog.set_level(logging.INFO, logger="ftkit")

    def text():
        messages = "\n".join(caplog.messages)
        caplog.clear()
        return messages

    return text


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A finished run on the embedded digits: the default recipe with fewer epochs. Read-only."""
    from support import finetune

    return finetune(tmp_path_factory.mktemp("digits") / "run", "--num_train_epochs", "6")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A finished run of `FOUR_EPOCHS`, with a checkpoint of each epoch. Read-only."""
    from support import FOUR_EPOCHS, finetune

    return finetune(tmp_path_factory.mktemp("whole") / "run", *FOUR_EPOCHS)


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A saved model of each family, with random weights, for the digits 0 and 1 at 16 x 16 pixels."""
    return _save_model(request.param, tmp_path_factory.mktemp(request.param.replace("/", "-")), size=16)


@pytest.fixture(scope="session")
def convnet(tmp_path_factory):
    """A saved convnet with random weights for the digits 0 and 1."""
    return _save_model("convnet", tmp_path_factory.mktemp("convnet-alone"), size=8)


@pytest.fixture(scope="session")
def mlp(tmp_path_factory):
    """A saved multilayer perceptron with random weights for the digits 0 and 1."""
    return _save_model("mlp", tmp_path_factory.mktemp("mlp-alone"), size=8)


def _save_model(name, path, size):
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from ftkit.config import ModelArguments
    from ftkit.data.pixels.images import ImageInfo
    from ftkit.models.classifier import Classifier
    from ftkit.tasks import SingleLabel

    torch.manual_seed(0)
    if name == "vit":
        config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=16, num_labels=2)  # fmt: skip
        Classifier(ViTForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16})).save(path)
    else:
        small = {"hidden_sizes": [16, 16]} if name == "mlp" else None
        args = ModelArguments(model=name, image_size=[size], model_args=small)
        Classifier.build(args, SingleLabel(["0", "1"]), ImageInfo((8, 8), 1), pretrained=False).save(path)
    return path
