"""A sample of tests/sweep.py: what a model that passes gives, and what a crash gives."""

import os
import signal

import pytest
import sweep


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return sweep.make_data(tmp_path_factory.mktemp("sweep") / "data")


def test_a_small_model_passes_every_step(data, tmp_path):
    *_, row = sweep.try_model("timm/test_convnext", "timm", tmp_path, data)
    assert row["steps"] == dict.fromkeys(["build", *sweep.STEPS, "other_classes"], "passed")
    assert (row["name"], row["head"]) == ("test_convnext", ["timm_model.head.fc"])


def test_a_class_of_transformers_is_made_small():
    config, side = sweep.smallest(sweep.transformers.ViTMSNForImageClassification)
    assert side == 64 and config.num_hidden_layers < 12 and config.hidden_size < 768


def test_a_crash_is_a_row(tmp_path, monkeypatch):
    def crash(*_):
        yield {"library": "timm", "steps": {"build": "passed"}}
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(sweep, "try_model", crash)
    row = sweep.in_a_child("timm/resnet", "timm", tmp_path)
    assert row["steps"] == {"build": "passed", "full": "crashed: signal 9"}


def test_all_modules_of_timm_and_classes_of_transformers_are_tried():
    kinds = sweep.kinds()
    assert {"timm/resnet", "timm/levit", "ViTForImageClassification", "DeiTForImageClassificationWithTeacher"} <= {
        *kinds
    }
    assert len(kinds) > 120
