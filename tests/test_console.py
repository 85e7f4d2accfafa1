"""What a run prints while it works."""

import logging
import re
from types import SimpleNamespace

import pytest
from support import MLP, TINY, train

from ftkit.console import ProgressLine, logger, set_up_console


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr("ftkit.console.time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.mark.parametrize("process", [0, 1])
def test_only_the_first_process_says_what_all_see(process, capsys, monkeypatch):
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    args = SimpleNamespace(process_index=process, disable_tqdm=False, get_process_log_level=lambda: logging.INFO)
    set_up_console(args)
    logger.warning("all images are 16-bit")
    assert capsys.readouterr().out == ("all images are 16-bit\n" if process == 0 else "")


def test_a_quick_step_says_nothing(clock, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="ftkit"), ProgressLine("decoding images", 1000) as progress:
        for _ in range(10):
            progress.add(100)
            clock(0.2)
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")


def test_a_long_step_says_how_far_it_is_ever_more_rarely(clock, caplog):
    with caplog.at_level(logging.INFO, logger="ftkit"), ProgressLine("decoding images", 20_000) as progress:
        for _ in range(20_000):
            clock(1)
            progress.add(1)
    said = [re.fullmatch(r"  decoding images: ([\d,]+) of 20,000, about (.*) left", line) for line in caplog.messages]
    assert [int(line[1].replace(",", "")) for line in said][:9] == [3, 6, 12, 24, 48, 96, 192, 384, 684]
    assert (said[0][2], said[-1][2]) == ("5.6 h", "2 min")
    assert len(said) < 80


def test_the_last_batch_may_be_short(clock, caplog):
    with caplog.at_level(logging.INFO, logger="ftkit"), ProgressLine("evaluating", 10) as progress:
        for _ in range(2):
            clock(10)
            progress.add(8)
    assert caplog.messages == ["  evaluating: 8 of 10, about 2 s left"]
    assert progress.done == 10


def test_on_a_terminal_there_is_a_bar(monkeypatch, caplog, capsys):
    monkeypatch.setattr("ftkit.console._PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("datasets.are_progress_bars_disabled", lambda: False)
    with caplog.at_level(logging.INFO, logger="ftkit"), ProgressLine("evaluating", 10) as progress:
        progress.add(8)
    assert "evaluating" in capsys.readouterr().err
    assert not caplog.messages


def test_decoding_features_and_evaluations_say_how_far_they_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("ftkit.console._PATIENCE", 0.0)
    base = train(tmp_path / "base", *MLP, *TINY, "--cache_dir", tmp_path / "cache").folder
    with caplog.at_level(logging.INFO, logger="ftkit"):
        train(tmp_path / "run", "--model", base, "--method", "linear_probe", *TINY, "--max_train_samples", 300,
              "--cache_dir", tmp_path / "another", "--per_device_eval_batch_size", 100)  # fmt: skip
    for what, total in (("decoding images", 300), ("computing features", 300), ("evaluating", 144)):
        assert re.search(rf"  {what}: \d+ of {total}, about \d+ s left", caplog.text), what
