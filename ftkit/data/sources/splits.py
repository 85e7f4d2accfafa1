"""Train, validation and test from the raw splits: columns by type, missing splits carved out, subsets taken."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from datasets import Dataset, DatasetDict, Image

from ftkit.config import DataArguments
from ftkit.data.sources.split_names import SPLITS, choose_splits
from ftkit.errors import UserError
from ftkit.tasks import DEFAULT_TASK, Task, task_of
from ftkit.tasks.columns import find_column, type_name

logger = logging.getLogger(__name__)


class Splits(DatasetDict):
    """The splits `train`, `validation` and `test` of a run.

    Attributes:
        drawn_from: for each split of which `max_validation_samples` or `max_test_samples` left only a part, the number
            of all its images.
    """

    drawn_from: Mapping[str, int] = MappingProxyType({})


def canonical(raw: DatasetDict, args: DataArguments, label_column: str | None) -> DatasetDict:
    """The splits of the run as `train`, `validation` and `test`; see `with_classes`."""
    chosen = choose_splits(raw, args, "the data")
    return with_classes({split: chosen[split] for split in SPLITS if split in chosen}, args, label_column)


def with_classes(
    splits: dict[str, Dataset], args: DataArguments, label_column: str | None, join: bool = True
) -> DatasetDict:
    """The splits with the columns `image`, `label`, `index`.

    A label column of text or integers becomes a `ClassLabel` over the values of the first split, in natural order.

    Args:
        join: whether `merge_similar_labels` applies.
    """
    first, train = next(iter(splits.items()))
    image = find_column(train, "image_column", args.image_column, (Image,), "picture")
    label = DEFAULT_TASK.target_column(train, label_column)
    for split, dataset in splits.items():
        if not len(dataset):
            raise UserError(f"{split} holds no images: remove it, or set another {split}_split")
        for name in (image, label):
            if name not in dataset.column_names:
                raise UserError(
                    f"column {name!r} of {first} is missing from {split}: {', '.join(dataset.column_names)}"
                )
    if join:
        splits = DEFAULT_TASK.join_similar(splits, label, args.merge_similar_labels)
    task = DEFAULT_TASK.read(splits, label)
    return DatasetDict({split: _rename(dataset, split, image, label, task) for split, dataset in splits.items()})


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


def take_fewer(splits: DatasetDict, args: DataArguments) -> Splits:
    """Reduce train to `max_train_samples` or `samples_per_class`, and the others to theirs, drawn by `split_seed`."""
    train, task = splits["train"], task_of(splits["train"].features)
    task.check_targets(train)
    fewer = {
        "train": some(train, args.max_train_samples, args.split_seed),
        "validation": some(splits["validation"], args.max_validation_samples, args.split_seed),
        "test": some(splits["test"], args.max_test_samples, args.split_seed),
    }
    if args.samples_per_class is not None:
        order = np.random.default_rng(args.split_seed).permutation(len(train))
        fewer["train"] = train.select(np.sort(task.some_of_each(train, args.samples_per_class, order)))
    found = Splits(fewer)
    found.drawn_from = {s: len(splits[s]) for s in ("validation", "test") if len(fewer[s]) < len(splits[s])}
    for split, count in found.drawn_from.items():
        logger.info("%s: %d of its %d images, drawn at random", split, len(found[split]), count)
    return found


def some(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """`count` rows of a dataset, drawn at random, in their order; all if None or if there are not more."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count]))


def keep_classes(splits: DatasetDict, classes: list[str] | None) -> DatasetDict:
    """Only the images of `classes` (all if None); labels are renumbered in the data's order."""
    if classes is None:
        return splits
    task = task_of(splits["train"].features)
    return DatasetDict({split: task.keep_classes(dataset, classes, split) for split, dataset in splits.items()})
