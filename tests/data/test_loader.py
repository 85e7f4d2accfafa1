"""The order of training batches: each image once per epoch, for any number of processes."""

import itertools

import pytest
import torch

from ftkit.data.feeding.loader import EpochBatches


def rows(batches: EpochBatches, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    taken = list(batches)
    assert len(taken) == len(batches)
    assert all(batch.epoch == epoch for batch in taken)
    return [batch.rows.tolist() for batch in taken]


def test_every_epoch_has_each_row_once_in_a_new_order():
    batches = EpochBatches(50, 8, seed=3)
    first, second, other = rows(batches), rows(batches, 1), rows(EpochBatches(50, 8, seed=4))
    assert [len(batch) for batch in first] == [8, 8, 8, 8, 8, 8, 2]
    for epoch in (first, second, other):
        assert sorted(itertools.chain(*epoch)) == list(range(50))
    assert len({str(rows(EpochBatches(50, 8, seed), epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert rows(EpochBatches(50, 8, seed=3)) == first


@pytest.mark.parametrize("count", [48, 50, 53])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_split_the_batches_of_a_single_process(count, processes):
    alone = rows(EpochBatches(count, 4 * processes, seed=0))
    shared = [rows(EpochBatches(count, 4, 0, process, processes)) for process in range(processes)]
    together = [list(itertools.chain(*parts)) for parts in zip(*shared, strict=True)]
    assert [together[:-1], set(together[-1])] == [alone[:-1], set(alone[-1])]
    assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*shared, strict=True))


def test_no_process_is_left_without_rows():
    shared = [rows(EpochBatches(9, 2, 0, process, 4)) for process in range(4)]
    assert [len(part[-1]) for part in shared] == [1, 1, 1, 1]
    assert {tuple(part[-1]) for part in shared} == {tuple(shared[0][-1])}


def test_drop_last_skips_a_batch_that_is_not_full():
    assert [len(batch) for batch in rows(EpochBatches(50, 8, 0, drop_last=True))] == [8] * 6
    assert rows(EpochBatches(5, 8, 0, drop_last=True)) == []


def test_the_order_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    rows(EpochBatches(50, 8, 0))
    assert torch.equal(torch.get_rng_state(), before)
