"""Training batches, in an order that depends only on seed and epoch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments

from ftkit.data.feeding.tensors import Batch, Images, collate


class EpochBatches(Sampler):
    """The batches of one process: rows of the split, shuffled again in each epoch.

    A global batch is cut into one part per process, so that n processes together see what one process with n times the
    batch size would. The last batch of an epoch is cut evenly too; if it has fewer rows than there are processes, some
    rows repeat.

    Args:
        count: number of rows of the split.
        batch_size: batch size of one process.
        seed: seed of the order.
        process: index of this process, from 0.
        processes: number of processes.
        drop_last: whether to skip a last batch that is not full.
        following: whether each batch also gets the next row in the epoch's order; after the last row comes the first.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        drop_last: bool = False,
        following: bool = False,
    ):
        self.following = following
        self.count, self.seed, self.process, self.processes = count, seed, process, processes
        self.batch_size, self.size, self.drop_last, self.epoch = batch_size, batch_size * processes, drop_last, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.size if self.drop_last else -(-self.count // self.size)

    def __iter__(self) -> Iterator[Batch]:
        # Not seed + epoch: the second epoch of a seed would then equal the first one of the next seed.
        seed = int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0])
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        for places in torch.arange(self.count).split(self.size)[: len(self)]:
            if len(places) < self.processes:
                places = places[torch.arange(self.processes) % len(places)]
            own = places.tensor_split(self.processes)[self.process]
            following = order[(own[-1:] + 1) % self.count] if self.following else None
            yield Batch(order[own], self.epoch, len(own) * self.processes / len(places), following)


class TrainingLoader(DataLoader):
    """A `DataLoader` over the batches of `EpochBatches`."""

    batch_sampler: EpochBatches

    def __init__(self, images: Images, batches: EpochBatches, **options: Any):
        # Its own generator: the workers' seeds would otherwise come from the one that dropout uses.
        super().__init__(images, batch_sampler=batches, collate_fn=collate, generator=torch.Generator(), **options)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self.batch_sampler.set_epoch(epoch)


def training_loader(args: TrainingArguments, images: Images, mixed: bool) -> TrainingLoader:
    """The loader of this process, set up by `args`; if images are `mixed`, each batch has the row that follows it."""
    seed = args.seed if args.data_seed is None else args.data_seed
    place = (args.process_index, args.world_size)
    return TrainingLoader(
        images,
        EpochBatches(len(images), args.train_batch_size, seed, *place, args.dataloader_drop_last, mixed),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )
