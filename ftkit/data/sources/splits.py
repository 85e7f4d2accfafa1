"""Train, validation and test from the raw splits: columns by type, missing splits carved out, subsets taken."""

import logging

import numpy as np
from datasets import Dataset, DatasetDict, Image

from ftkit.config import DataArguments
from ftkit.data.sources.origins import with_sources
from ftkit.data.sources.split_names import SPLIT_NAMES
from ftkit.errors import UserError
from ftkit.tasks import DEFAULT_TASK, Task, task_of
from ftkit.tasks.columns import find_column, type_name

logger = logging.getLogger(__name__)


def canonical(raw: DatasetDict, args: DataArguments, label_column: str | None) -> DatasetDict:
    """The splits of the run as `train`, `validation` and `test`, with the columns `image`, `label`, `index`, `source`.

    A label column of text or integers becomes a `ClassLabel` over the values of all splits, in natural order.
    """
    wanted = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    splits, names = {}, {}
    for split, name in wanted.items():
        usual = SPLIT_NAMES[split] if name == split else ()
        found = name if name in raw else next((other for other in usual if other in raw), None)
        if found is not None:
            splits[split], names[split] = raw[found], found
        elif split == "train" or name != split:
            raise UserError(f"{split}_split: {name!r} is not a split of the data: {', '.join(raw)}")
    train = splits["train"]
    image = find_column(train, "image_column", args.image_column, (Image,), "picture")
    label = DEFAULT_TASK.target_column(train, label_column)
    for split, dataset in splits.items():
        if not len(dataset):
            raise UserError(f"{split} holds no images: remove it, or set another {split}_split")
        for name in (image, label):
            if name not in dataset.column_names:
                raise UserError(f"column {name!r} of train is missing from {split}: {', '.join(dataset.column_names)}")
    task = DEFAULT_TASK.read(splits, label)
    found = DatasetDict({split: _rename(dataset, split, image, label, task) for split, dataset in splits.items()})
    return with_sources(found, splits, names, args.data_dir)


def _rename(dataset: Dataset, split: str, image: str, label: str, task: Task) -> Dataset:
    dataset = dataset.select_columns([image, label])
    dataset = dataset.rename_columns({a: b for a, b in ((image, "image"), (label, "label")) if a != b})
    if not isinstance(dataset.features["image"], Image):
        raise UserError(f"image_column: {image!r} holds {type_name(dataset.features['image'])}: expected images")
    return task.encode(dataset, split).add_column("index", np.arange(len(dataset)))


def complete_splits(splits: DatasetDict, args: DataArguments) -> DatasetDict:
    """Carve missing test and validation splits out of train: stratified, by `split_seed`."""
    splits = DatasetDict(splits)
    for split, size in (("test", args.test_size), ("validation", args.validation_size)):
        if split not in splits:
            splits["train"], splits[split] = _carve(splits["train"], split, size, args.split_seed)
    return DatasetDict({split: splits[split] for split in ("train", "validation", "test")})


def _carve(train: Dataset, split: str, share: float, seed: int) -> tuple[Dataset, Dataset]:
    kept, carved = task_of(train.features).carve(train, split, share, seed)
    logger.info("%s: carved %d of %d images out of train, stratified", split, len(carved), len(train))
    return train.select(kept), train.select(carved)


def take_fewer(splits: DatasetDict, args: DataArguments) -> DatasetDict:
    """Reduce train to `max_train_samples` or `samples_per_class`, drawn by `split_seed`; leave the other splits."""
    train, task = splits["train"], task_of(splits["train"].features)
    task.check_targets(train)
    rows = order = np.random.default_rng(args.split_seed).permutation(len(train))
    if args.samples_per_class is not None:
        rows = task.some_of_each(train, args.samples_per_class, order)
    elif args.max_train_samples is not None:
        rows = order[: args.max_train_samples]
    return splits if len(rows) == len(train) else DatasetDict({**splits, "train": train.select(np.sort(rows))})


def keep_classes(splits: DatasetDict, classes: list[str] | None) -> DatasetDict:
    """Only the images of `classes` (all if None); labels are renumbered in the data's order."""
    if classes is None:
        return splits
    task = task_of(splits["train"].features)
    return DatasetDict({split: task.keep_classes(dataset, classes, split) for split, dataset in splits.items()})
