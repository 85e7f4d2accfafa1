"""Turns raw splits into train, validation and test: finds columns, carves missing splits, takes subsets."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, concatenate_datasets

from ftkit.config import DataArguments
from ftkit.config.arguments.data import NO_SPLIT
from ftkit.data.sources.ledger import UNUSED_SPLIT, Ledger
from ftkit.data.sources.origins import PLACE, with_rows, with_sources
from ftkit.data.sources.split_names import (
    choose_splits,
    is_none,
    is_split_like,
    looks_like_splits,
    split_column,
    split_of,
)
from ftkit.data.sources.unusable import Unusable
from ftkit.errors import UserError, as_options, listed
from ftkit.tasks import DEFAULT_TASK, Task, task_of
from ftkit.tasks.columns import find_column, own_columns, type_name

logger = logging.getLogger(__name__)


def choose_datasets(raw: dict[str, Dataset], args: DataArguments, ledger: Ledger, source: object) -> DatasetDict:
    """`train`, `validation` and `test` among a source's `raw` splits.

    A split column divides the rows of a file or split whose name is train's or no split's.

    Raises:
        UserError: see `choose_splits` and `split_column`; or the names of files contradict the split column.
    """
    found: dict[str, list[Dataset]] = {}
    raw = with_rows(raw)
    for name, dataset in raw.items():
        own, parts = split_of(name), _divided(name, dataset, args, f"{source}, {name}", raw)
        if len(parts) == 1 and own == split_of(next(iter(parts))):
            parts = {name: next(iter(parts.values()))}
        for part, rows in parts.items():
            if (own in ("validation", "test") and split_of(part) != own) or (own and part in found):
                raise UserError(
                    f"{source}: rows of {name} are {part} by their column of splits: correct it, or set "
                    f"--split_column {NO_SPLIT} to go by the names of the files",
                    fix={"split_column": NO_SPLIT},
                )
            found.setdefault(part, []).append(rows)
    whole = {name: rows[0] if len(rows) == 1 else concatenate_datasets(rows) for name, rows in found.items()}
    chosen = choose_splits(whole, args, source)
    for name, dataset in whole.items():
        if not any(dataset is used for used in chosen.values()):
            ledger.leave_rows(name, len(dataset), UNUSED_SPLIT)
    return DatasetDict(chosen)


def _divided(
    name: str, dataset: Dataset, args: DataArguments, source: str, raw: dict[str, Dataset]
) -> dict[str, Dataset]:
    """The rows by their split column, which is dropped; all under `name` if there is none."""
    given = args.split_column
    if given not in dataset.column_names and any(given in other.column_names for other in raw.values()):
        given = NO_SPLIT  # another file has the column
    values = {} if is_none(given) else _values_of_columns(dataset, args)
    if (found := split_column(values, given, source)) is None:
        return {name: dataset}
    column, names = found
    logger.info("  %-12s by the column %r: %s", "splits", column, ", ".join(dict.fromkeys(names.values())))
    of_rows = np.array([names[value] for value in _readable(dataset, column)])
    rest = dataset.remove_columns(column)
    return {part: rest.select(np.flatnonzero(of_rows == part)) for part in dict.fromkeys(names.values())}


def _values_of_columns(dataset: Dataset, args: DataArguments) -> dict[str, list[Any]]:
    """The distinct values of each column that may hold splits: short texts, classes, numbers, yes and no."""
    found = {}
    for name, feature in dataset.features.items():
        if name in (PLACE, args.image_column, args.label_column, *DEFAULT_TASK.usual_columns) or not len(dataset):
            continue
        kind = feature.dtype if isinstance(feature, Value) else ""
        first = str(_readable(dataset.select([0]), name)[0]) if kind or isinstance(feature, ClassLabel) else ""
        named = name == args.split_column or (kind != "" and looks_like_splits(name))
        if named or is_split_like(first):
            values = list(dict.fromkeys(_readable(dataset, name)))
            if values != [None]:  # a file without the column, beside others that have it
                found[name] = values
    return found


def _readable(dataset: Dataset, column: str) -> list[Any]:
    """The values of a column, classes by name."""
    feature = dataset.features[column]
    values = dataset.select_columns(column).with_format("arrow")[:][column].to_pylist()
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    return values


class Splits(DatasetDict):
    """The splits `train`, `validation` and `test` of a run.

    Attributes:
        drawn_from: how many images validation and test had, if `max_validation_samples` or `max_test_samples` left
            fewer.
    """

    drawn_from: Mapping[str, int] = MappingProxyType({})


def canonical(
    raw: Mapping[str, Dataset], args: DataArguments, label_column: str | None, for_training: bool = True
) -> DatasetDict:
    """The splits of the run as `train`, `validation` and `test`, with the columns `image`, `label`, `index`, `source`.

    A label column of text or integers becomes a `ClassLabel` over the values of all splits, in natural order.

    Args:
        raw: the splits by these names; `validation` and `test` may be missing.
        for_training: whether to refuse hidden labels and join similar names; otherwise `raw` may hold any splits.
    """
    splits = dict(raw)
    train = next(iter(splits.values()))
    image = find_column(train, "image_column", args.image_column, (Image,), "picture")
    label = DEFAULT_TASK.target_column(train, label_column)
    for split, dataset in splits.items():
        if not len(dataset):
            raise Unusable(f"{split} holds no images", [split], f"remove it, or name another with --{split}_split")
        for name in (image, label):
            if name not in dataset.column_names:
                columns = ", ".join(own_columns(dataset))
                raise Unusable(
                    f"column {name!r} of train is missing from {split}, which has {columns}", [split], "add it"
                )
    others = [split for split in splits if split != "train" and for_training]
    if hidden := [split for split in others if DEFAULT_TASK.lacks_targets(splits, label, split)]:
        have = f"{' and '.join(hidden)} {'have' if len(hidden) > 1 else 'has'}"
        raise Unusable(f"{have} rows without a label (empty, or -1 for a hidden one)", hidden, "label them")
    if for_training:
        splits = DEFAULT_TASK.join_similar(splits, label, args.merge_similar_labels)
    task = DEFAULT_TASK.read(splits, label)
    found = DatasetDict({split: _rename(dataset, split, image, label, task) for split, dataset in splits.items()})
    return with_sources(found, splits, args.data_dir)


def check_classes(splits: DatasetDict, source: object) -> None:
    """Check that train has at least two classes, and all classes of the other splits.

    Raises:
        UserError: it does not.
    """
    task = task_of(splits["train"].features)
    counts = {split: task.counts(task.tensor(dataset)) for split, dataset in splits.items()}
    trained = [name for name, count in counts["train"].items() if count]
    if len(trained) < 2:
        raise UserError(
            f"{source}: train has only one class, {', '.join(map(repr, trained))}: a classifier needs at least two"
        )
    for split, found in counts.items():
        unknown = [name for name, count in found.items() if count and not counts["train"][name]]
        look_like_known = task.look_like(unknown, trained)
        if unknown and not look_like_known and not any(found[name] for name in trained):
            raise Unusable(
                f"{source}: {split} has classes that train lacks, and no other: {listed(map(repr, unknown))}; train "
                f"has {listed(map(repr, trained))}",
                [split],
                "correct the labels",
            )
        if unknown and not look_like_known:
            raise UserError(
                f"{source}: {split} has classes that train lacks: {', '.join(map(repr, unknown[:5]))}: add them to "
                f"train, or keep those of train with {as_options({'classes': trained})}",
                fix={"classes": trained},
            )
        if unknown:
            raise UserError(
                f"{source}: {split} has classes that train lacks, but they look like train's: {look_like_known}: join "
                "them with --merge_similar_labels true, or correct them",
                fix={"merge_similar_labels": True},
            )


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
    task = task_of(train.features)
    kept, carved, single = task.carve(train, split, share, seed)
    logger.info("%s: carved %d of %d images out of train, stratified", split, len(carved), len(train))
    rest, part = train.select(kept), train.select(carved)
    if single:
        logger.info("  the only image of %s stays in train", listed(single))
    if without := sum(count == 0 for count in task.counts(task.tensor(part)).values()):
        logger.info("  %d of %d classes are too small to have an image in %s", without, len(task.names), split)
    return rest, part


def take_fewer(splits: DatasetDict, args: DataArguments) -> Splits:
    """Draw `max_train_samples` or `samples_per_class` of train by `split_seed`, and the maximum of the others."""
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
    for split, rows in fewer.items():
        if len(rows) < len(splits[split]):
            logger.info("%s: %d of its %d images, drawn at random", split, len(rows), len(splits[split]))
    return found


def some(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """`count` rows of a dataset, drawn at random, in their order; all if `count` is None or larger."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count]))


def keep_classes(splits: DatasetDict, classes: list[str] | None) -> DatasetDict:
    """Only the images of `classes` (all if None); labels are renumbered in the data's order."""
    if classes is None:
        return splits
    task = task_of(splits["train"].features)
    return DatasetDict({split: task.keep_classes(dataset, classes, split) for split, dataset in splits.items()})
