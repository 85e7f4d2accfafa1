"""Waiting for data is measured, logged and reported."""

import time

from support import MLP, finetune, stage_results

from ftkit.data.feeding.tensors import ImageTensors


def waiting(run):
    return stage_results(run)[0]["waiting_for_data"]


def test_training_that_waits_for_data_warns(tmp_path, monkeypatch, capsys, digits_run):
    pixels = ImageTensors.pixels

    def slow(self, rows, epoch=0):
        time.sleep(0.3)
        return pixels(self, rows, epoch)

    assert waiting(digits_run) < 0.5
    monkeypatch.setattr(ImageTensors, "pixels", slow)
    run = finetune(
        tmp_path / "run", *MLP, "--max_steps", 8, "--per_device_train_batch_size", 32, "--eval_strategy", "no"
    )
    assert 0.5 < waiting(run) <= 1
    assert "training waited for data for" in capsys.readouterr().out
    assert "| waiting for data |" in (run / "evaluation" / "report.md").read_text()
