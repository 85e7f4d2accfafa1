"""From what was read to train, validation and test: columns by type, splits carved, fewer images where asked."""

import logging
import math

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from ftkit.config import DataArguments
from ftkit.data.pixels.images import column
from ftkit.data.sources.folders import SPLIT_NAMES, natural_sorted
from ftkit.errors import UserError, nearest

logger = logging.getLogger(__name__)


def _find_column(dataset: Dataset, key: str, given: str | None, types: tuple[type, ...], kind: str) -> str:
    """The column of that feature type, or the one that was named."""
    columns = dataset.column_names
    if given is not None:
        if given not in columns:
            raise UserError(
                f"{key}: {given!r} is not a column of the data: {', '.join(columns)}{nearest(given, columns)}"
            )
        return given
    found = [name for name, feature in dataset.features.items() if isinstance(feature, types)]
    if len(found) == 1:
        return found[0]
    described = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in dataset.features.items())
    state = f"{len(found)} columns are {kind}s" if found else f"no column is a {kind}"
    raise UserError(f"{key}: {state}: set {key} to one of {described}")


def _type_name(feature) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _label_column(dataset: Dataset, given: str | None) -> str:
    """A ClassLabel, or else the only column of whole numbers or text called `label` or so."""
    if given is None and not any(isinstance(feature, ClassLabel) for feature in dataset.features.values()):
        plain = [name for name in ("label", "labels", "class", "cls", "target") if name in dataset.column_names]
        if len(plain) == 1:
            return plain[0]
    return _find_column(dataset, "label_column", given, (ClassLabel,), "class label")


def canonical(raw: DatasetDict, args: DataArguments, label_column: str | None) -> DatasetDict:
    """Keep the splits of the run, as `train`, `validation`, `test` with the columns `image`, `label`, `index`.

    A label column of text or whole numbers becomes a `ClassLabel` over the values of all splits, in natural order.
    """
    wanted = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    splits = {}
    for split, name in wanted.items():
        usual = SPLIT_NAMES[split] if name == split else ()
        found = name if name in raw else next((other for other in usual if other in raw), None)
        if found is not None:
            splits[split] = raw[found]
        elif split == "train" or name != split:
            raise UserError(f"{split}_split: {name!r} is not a split of the data: {', '.join(raw)}")
    train = splits["train"]
    image = _find_column(train, "image_column", args.image_column, (Image,), "picture")
    label = _label_column(train, label_column)
    for split, dataset in splits.items():
        if not len(dataset):
            raise UserError(f"{split} holds no images: remove it, or name another {split}_split")
        for name in (image, label):
            if name not in dataset.column_names:
                raise UserError(f"column {name!r} of train is missing in {split}: {', '.join(dataset.column_names)}")
    names = _class_names(splits, label)
    return DatasetDict({split: _rename(dataset, split, image, label, names) for split, dataset in splits.items()})


def _class_names(splits: dict[str, Dataset], label: str) -> list[str]:
    feature = splits["train"].features[label]
    if isinstance(feature, ClassLabel):
        return feature.names
    if not isinstance(feature, Value) or not feature.dtype.startswith(("int", "uint", "string", "large_string")):
        raise UserError(
            f"label_column: {label!r} holds {_type_name(feature)}: expected class labels, text or integers"
        )
    values = {split: _label_values(dataset, label) for split, dataset in splits.items()}
    for split, found in values.items():
        if None in found:
            raise UserError(f"label_column: {label!r} is empty in some rows of {split}")
        if unknown := natural_sorted(found - values["train"]):
            raise UserError(f"{split} has classes that train does not: {', '.join(map(repr, unknown[:5]))}")
    return natural_sorted(values["train"])


def _label_values(dataset: Dataset, label: str) -> set[str | None]:
    feature = dataset.features[label]
    if isinstance(feature, ClassLabel):
        return {feature.names[value] if value is not None and value >= 0 else None for value in dataset.unique(label)}
    return {None if value is None else str(value) for value in dataset.unique(label)}


def _rename(dataset: Dataset, split: str, image: str, label: str, names: list[str]) -> Dataset:
    feature = dataset.features[label]
    dataset = dataset.select_columns([image, label])
    dataset = dataset.rename_columns({a: b for a, b in ((image, "image"), (label, "label")) if a != b})
    if not isinstance(dataset.features["image"], Image):
        raise UserError(f"image_column: {image!r} holds {_type_name(dataset.features['image'])}: expected images")
    if not isinstance(feature, ClassLabel):
        if unknown := natural_sorted(_label_values(dataset, "label") - set(names)):
            raise UserError(f"{split} has classes that train does not: {', '.join(map(repr, unknown[:5]))}")
        labels = [names.index(str(value)) for value in dataset["label"]]
        dataset = dataset.remove_columns("label").add_column("label", labels, feature=ClassLabel(names=names))
    elif feature.names != names:
        dataset = relabel(dataset, names, what=split)
    labels = dataset.data.column("label")
    if labels.null_count or not 0 <= pc.min(labels).as_py() <= pc.max(labels).as_py() < len(names):
        raise UserError(f"{split} has rows without a label: name another {split}_split, or remove it")
    return dataset.add_column("index", np.arange(len(dataset)))


def complete_splits(splits: DatasetDict, args: DataArguments) -> DatasetDict:
    """Carve test and validation out of train where they are missing: stratified, by `split_seed`."""
    splits = DatasetDict(splits)
    for split, size in (("test", args.test_size), ("validation", args.validation_size)):
        if split not in splits:
            splits["train"], splits[split] = _carve(splits["train"], split, size, args.split_seed)
    return DatasetDict({split: splits[split] for split in ("train", "validation", "test")})


def _carve(train: Dataset, split: str, share: float, seed: int) -> tuple[Dataset, Dataset]:
    labels = column(train, "label")
    counts = np.bincount(labels)
    classes, carved = (counts > 0).sum(), math.ceil(len(train) * share)
    if counts[counts > 0].min() < 2 or min(carved, len(train) - carved) < classes:
        rare = train.features["label"].int2str(int(np.where(counts > 0, counts, counts.max() + 1).argmin()))
        raise UserError(
            f"there is no {split} split, and {len(train)} images ({counts[counts > 0].min()} of class {rare!r}) are "
            f"too few to carve {share:.0%} of each class out of train: add images, change {split}_size, or give a "
            f"{split} split"
        )
    from sklearn.model_selection import train_test_split  # `Dataset.train_test_split` reads the labels one by one

    kept, carved = train_test_split(np.arange(len(train)), test_size=share, stratify=labels, random_state=seed)
    logger.info("%s: carved %d of %d images out of train, stratified", split, len(carved), len(train))
    return train.select(np.sort(kept)), train.select(np.sort(carved))


def take_fewer(splits: DatasetDict, args: DataArguments) -> DatasetDict:
    """`max_train_samples` or `samples_per_class` of train, drawn by `split_seed`; the other splits stay whole."""
    train, rng = splits["train"], np.random.default_rng(args.split_seed)
    labels = column(train, "label")
    names = train.features["label"].names
    if len(np.unique(labels)) < 2:
        raise UserError("train holds images of one class: a classifier needs at least two")
    rows = order = rng.permutation(len(labels))
    if args.samples_per_class is not None:
        counts = np.bincount(labels, minlength=len(names))
        if short := [f"{names[i]!r} ({n})" for i, n in enumerate(counts) if n < args.samples_per_class]:
            raise UserError(
                f"samples_per_class: {args.samples_per_class} is more than train has of {', '.join(short[:5])}"
            )
        rows = np.concatenate([order[labels[order] == c][: args.samples_per_class] for c in range(len(names))])
    elif args.max_train_samples is not None:
        rows = order[: args.max_train_samples]
    return splits if len(rows) == len(train) else DatasetDict({**splits, "train": train.select(np.sort(rows))})


def keep_classes(splits: DatasetDict, classes: list[str] | None) -> DatasetDict:
    """Only the images of `classes` (all of them where it is None); labels are numbered anew in the data's order."""
    if classes is None:
        return splits
    return DatasetDict({split: _keep_classes(dataset, classes, split) for split, dataset in splits.items()})


def _keep_classes(dataset: Dataset, classes: list[str], split: str) -> Dataset:
    names = dataset.features["label"].names
    if unknown := [name for name in classes if name not in names]:
        raise UserError(
            f"classes: {', '.join(map(repr, unknown))} not among the {len(names)} classes of the data"
            f"{nearest(unknown[0], names)}: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
        )
    kept = [name for name in names if name in classes]
    rows = np.flatnonzero(np.isin(column(dataset, "label"), [names.index(name) for name in kept]))
    if not len(rows):
        raise UserError(f"classes: {split} has no image of {', '.join(classes)}")
    return relabel(dataset.select(rows), kept, what=split)


def relabel(dataset: Dataset, names: list[str], what: str) -> Dataset:
    """`dataset` with its labels numbered as in `names`, class by class name.

    Raises:
        UserError: a class of its rows is not among `names`; the message calls the dataset `what`.
    """
    old = dataset.features["label"].names
    if old == names:
        return dataset
    labels = column(dataset, "label")
    numbers = np.array([names.index(name) if name in names else -1 for name in old])
    new = np.where(labels >= 0, numbers[labels], labels)
    if unknown := [old[i] for i in np.unique(labels[(new < 0) & (labels >= 0)])]:
        raise UserError(
            f"{what} has classes that are not known: {', '.join(map(repr, unknown[:5]))}: known are "
            f"{', '.join(map(repr, names[:20]))}{', …' if len(names) > 20 else ''}"
        )
    return dataset.remove_columns("label").add_column("label", new, feature=ClassLabel(names=names))
