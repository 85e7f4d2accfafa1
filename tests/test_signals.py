"""Signals: all processes act on one that a single process received."""

import signal

import pytest
import torch
import torch.distributed as dist

from ftkit.signals import Signals


@pytest.fixture
def nccl_groups(monkeypatch):
    """Pretend to be one of two NCCL processes; the other received no signal. Returns the groups created."""
    made = []

    class Work:
        def wait(self):
            pass

    def all_reduce(values, op, group=None, async_op=False):
        assert values.device.type == "cpu" and group == "hosts" and async_op, "the host would wait for the GPU"
        return Work()

    for name, value in (
        ("is_initialized", lambda: True),
        ("get_world_size", lambda: 2),
        ("get_backend", lambda group=None: "nccl"),
        ("new_group", lambda backend: made.append(backend) or "hosts"),
        ("all_reduce", all_reduce),
    ):
        monkeypatch.setattr(dist, name, value)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("the GPU is asked"))
    return made


def test_processes_agree_without_using_their_gpus(nccl_groups):
    signals = Signals()
    with signals.deferred():
        assert signals.agreed() == (False, 0)
        signals._remember(signal.SIGTERM, None)
        assert signals.agreed() == (False, 0)  # exchanged while the next step runs
        assert signals.agreed() == (True, signal.SIGTERM)
    assert nccl_groups == ["gloo"]
