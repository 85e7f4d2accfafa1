"""The batches of training, in an order that depends on the seed and the epoch alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments

from ftkit.data.feeding.tensors import Batch, Images, collate


class EpochBatches(Sampler):
    """The batches of one process: the rows of the split, shuffled anew in each epoch.

    A batch of n processes is cut into n parts, so that together they see what one process with n times the batch size
    would. The last batch of an epoch is cut evenly too; where it has fewer rows than there are processes, some rows
    are taken twice.

    Args:
        count: rows of the split.
        batch_size: of one process.
        seed: of the order.
        process: which of the processes this is, from 0.
        processes: how many there are.
        drop_last: leave out a last batch that is not full.
        following: give each batch the row that follows it in the order of the epoch; the last, the first one.
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
        """Which epoch the next iteration is, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.size if self.drop_last else -(-self.count // self.size)

    def __iter__(self) -> Iterator[Batch]:
        # Not seed + epoch, with which the second epoch of a seed would be the first one of the next.
        seed = int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0])
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        for places in torch.arange(self.count).split(self.size)[: len(self)]:
            if len(places) < self.processes:
                places = places[torch.arange(self.processes) % len(places)]
            own = places.tensor_split(self.processes)[self.process]
            following = order[(own[-1:] + 1) % self.count] if self.following else None
            yield Batch(order[own], self.epoch, len(own) * self.processes / len(places), following)


class TrainingLoader(DataLoader):
    """A `DataLoader` whose batches are those of `EpochBatches`."""

    batch_sampler: EpochBatches

    def __init__(self, images: Images, batches: EpochBatches, **options: Any):
        # A generator of its own: the seeds of workers would be drawn from the one that dropout draws from.
        super().__init__(images, batch_sampler=batches, collate_fn=collate, generator=torch.Generator(), **options)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is, from 0."""
        self.batch_sampler.set_epoch(epoch)


def training_loader(args: TrainingArguments, images: Images, mixed: bool) -> TrainingLoader:
    """The loader of this process, as `args` ask for it; where images are `mixed`, a batch has the row that follows."""
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
