"""A tracker that fails is logged once, and the run continues."""

import logging

import pytest
from support import MLP, TINY, train
from transformers.integrations import TensorBoardCallback

QUICK = [*TINY, *MLP, "--report_to", "tensorboard"]


@pytest.mark.parametrize("event", ["on_train_begin", "on_log", "on_train_end"])
def test_a_run_continues_without_its_tracker(tmp_path, monkeypatch, caplog, event):
    def away(self, *args, **options):
        raise ConnectionError("the service is away")

    monkeypatch.setattr(TensorBoardCallback, event, away)
    logging.getLogger("ftkit")  # which would become its parent later
    monkeypatch.setattr(logging.getLogger("ftkit.training.trackers"), "parent", logging.root)  # as caplog listens
    assert train(tmp_path / "run", *QUICK).stages
    logged = [record.getMessage() for record in caplog.records if "report_to" in record.getMessage()]
    assert logged == ["report_to: TensorBoard failed, the run continues without it: the service is away"]


def test_a_working_tracker_gets_every_event(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(TensorBoardCallback, "on_log", lambda self, *args, logs, **options: heard.append(logs))
    train(tmp_path / "run", *QUICK)
    assert sum("eval_accuracy" in logs for logs in heard) == 2 and any("loss" in logs for logs in heard)
