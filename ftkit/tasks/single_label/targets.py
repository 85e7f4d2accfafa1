"""Class labels of a dataset: finding, checking and renumbering them, and choosing rows by class."""

import math
from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, LargeList, List, Value

from ftkit.errors import UserError, listed, nearest
from ftkit.files import natural_sorted
from ftkit.tasks.columns import column, find_column, own_columns, type_name

USUAL_NAMES = ("label", "labels", "class", "cls", "target")
_TYPES = ("int", "uint", "bool", "string", "large_string", "string_view", "float", "double", "binary", "large_binary")


def label_column(dataset: Dataset, given: str | None) -> str:
    """The name of the label column: the `given` one, the only ClassLabel, or the only one with a usual name.

    A member of a struct, such as `json.label`, goes by its own name.
    """
    if given is None and not any(isinstance(feature, ClassLabel) for feature in dataset.features.values()):
        plain = [name for name in dataset.column_names if name in USUAL_NAMES]
        plain = plain or [name for name in dataset.column_names if name.rpartition(".")[2] in USUAL_NAMES]
        if len(plain) == 1:
            return plain[0]
    return find_column(dataset, "label_column", given, (ClassLabel,), "class label", _columns_of_classes(dataset))


def _columns_of_classes(dataset: Dataset) -> list[str]:
    """The columns that can be labels: at least two values that repeat, and no fractions."""
    found = []
    for name in own_columns(dataset):
        feature = dataset.features[name]
        if isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(_TYPES)):
            values = dataset.unique(name)
            if 2 <= len(values) <= len(dataset) / 2 and not any(map(_is_fraction, values)):
                found.append(name)
    return found


def class_names(splits: dict[str, Dataset], label: str) -> list[str]:
    """The classes of the column `label`: the names of a ClassLabel, or the values in all splits in natural order.

    Text, whole numbers, true and false, and bytes of text are classes.

    Raises:
        UserError: the column holds something else, or has empty rows.
    """
    first = next(iter(splits.values()))
    feature = first.features[label]
    if isinstance(feature, ClassLabel):
        return feature.names
    if not isinstance(feature, Value) or not feature.dtype.startswith(_TYPES):
        several = isinstance(feature, (List, LargeList))
        what = "lists, as of several labels or of zeros and ones, and ftkit learns one class for each image"
        raise _no_classes(first, label, what if several else type_name(feature))
    if any(_is_fraction(value) for dataset in splits.values() for value in dataset.unique(label)):
        what = f"{type_name(feature)} with fractions, and ftkit learns classes, not numbers (regression)"
        raise _no_classes(first, label, what)
    values = {split: _values(dataset, label) for split, dataset in splits.items()}
    for split, found in values.items():
        if None in found:
            raise UserError(f"label_column: {label!r} is empty in some rows of {split}: label or remove them")
    return natural_sorted({str(name) for found in values.values() for name in found})


def _no_classes(train: Dataset, label: str, what: str) -> UserError:
    fitting = [name for name in _columns_of_classes(train) if name != label]
    other = f"set label_column to {' or '.join(fitting[:5])}, or " if fitting else ""
    return UserError(
        f"label_column: {label!r} holds {what}: {other}name a column of class labels, text or integers",
        fix={"label_column": fitting[0]} if fitting else None,
    )


def _is_fraction(value: object) -> bool:
    return isinstance(value, float) and not value.is_integer() and value == value


def _name(value: object) -> str | None:
    """The class that a value names; None for none, as pandas writes both nothing and not-a-number."""
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def lacks_labels(splits: dict[str, Dataset], label: str, split: str) -> bool:
    """Whether rows of a split have no class in the column `label`: it is empty, or -1, as `datasets` hides labels."""
    if not all(isinstance(splits[name].features[label], (ClassLabel, Value)) for name in ("train", split)):
        return False  # no labels at all, as `class_names` says
    missing = {None, ""} | ({"-1"} - _values(splits["train"], label))
    return not missing.isdisjoint(_values(splits[split], label))


def _check_known(found: set[str | None], known: set[str | None], split: str) -> None:
    if unknown := natural_sorted(found - known):
        raise UserError(
            f"{split} has classes that train does not: {listed(map(repr, unknown))}: add them to train or remove them"
        )


def _values(dataset: Dataset, label: str) -> set[str | None]:
    feature = dataset.features[label]
    if isinstance(feature, ClassLabel):
        return {feature.names[value] if value is not None and value >= 0 else None for value in dataset.unique(label)}
    return {_name(value) for value in dataset.unique(label)}


def as_classes(dataset: Dataset, names: list[str], split: str) -> Dataset:
    """`dataset` with its column `label` as a ClassLabel of these names.

    Raises:
        UserError: a row has no label, or a class that is not in `names`.
    """
    feature = dataset.features["label"]
    if not isinstance(feature, ClassLabel):
        _check_known(_values(dataset, "label"), set(names), split)
        numbers = {name: number for number, name in enumerate(names)}
        dataset = _with_labels(dataset, [numbers[str(_name(value))] for value in dataset["label"]], names)
    elif feature.names != names:
        dataset = relabel(dataset, names, what=split)
    labels = dataset.data.column("label")
    if labels.null_count or not 0 <= pc.min(labels).as_py() <= pc.max(labels).as_py() < len(names):
        raise UserError(f"{split} has rows without a label: name another split with {split}_split")
    return dataset


def relabel(dataset: Dataset, names: list[str], what: str) -> Dataset:
    """`dataset` with its labels renumbered to the order of `names`, by class name.

    Raises:
        UserError: a row's class is not in `names`; the message calls the dataset `what`.
    """
    old = dataset.features["label"].names
    if old == names:
        return dataset
    labels = column(dataset, "label")
    numbers = np.array([names.index(name) if name in names else -1 for name in old])
    new = np.where(labels >= 0, numbers[labels], labels)
    if unknown := [old[i] for i in np.unique(labels[(new < 0) & (labels >= 0)])]:
        raise UserError(
            f"{what} has unknown classes: {listed(map(repr, unknown))}; known are {listed(map(repr, names), 20)}"
        )
    return _with_labels(dataset, new, names)


def _with_labels(dataset: Dataset, labels: np.ndarray | list[int], names: list[str]) -> Dataset:
    return dataset.remove_columns("label").add_column("label", labels, feature=ClassLabel(names=names))


def keep_classes(dataset: Dataset, classes: list[str], split: str, others: Iterable[str] = ()) -> Dataset:
    """The rows of these classes, with labels renumbered in the data's order.

    Args:
        classes: their names; a text with commas that is no class itself lists several.
        others: names of classes that may be missing from the data.

    Raises:
        UserError: a class is unknown, or the split has no image of any of them.
    """
    names = dataset.features["label"].names
    valid = [*names, *(name for name in others if name not in names)]
    wanted = [name for text in classes for name in ([text] if text in valid else _listed(text))]
    if unknown := [name for name in wanted if name not in valid]:
        raise UserError(
            f"classes: {', '.join(map(repr, unknown))} not among the {len(names)} classes of the data"
            f"{nearest(unknown[0], names)}: {listed(names, 20)}"
        )
    kept = [name for name in names if name in wanted]
    rows = np.flatnonzero(np.isin(column(dataset, "label"), [names.index(name) for name in kept]))
    if not len(rows):
        raise UserError(f"classes: {split} has no image of {', '.join(wanted)}")
    return relabel(dataset.select(rows), kept, what=split)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] or [text]


def carve(train: Dataset, split: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The rows that stay in train, those that become `split`, and the classes of one image, which stay in train.

    A share of each class is carved. Where classes are too small for that, those with the largest remainders give an
    image more, by `seed` among equals; each class keeps at least one image in train.

    Raises:
        UserError: every class has one image.
    """
    labels = column(train, "label")
    counts = np.bincount(labels)
    single = [train.features["label"].int2str(int(i)) for i in np.flatnonzero(counts == 1)]
    classes, wanted = (counts > 0).sum(), math.ceil(len(train) * share)
    if counts.max(initial=0) < 2:
        raise UserError(
            f"the data have no {split} split, and none can be carved out of train: each of the {classes} classes has "
            f"one image there, too few to share: add images, or a {split} split"
        )
    if not single and min(wanted, len(train) - wanted) >= classes:
        from sklearn.model_selection import train_test_split  # `Dataset.train_test_split` reads the labels one by one

        kept, carved = train_test_split(np.arange(len(train)), test_size=share, stratify=labels, random_state=seed)
        if len(np.unique(labels[kept])) == classes:
            return np.sort(kept), np.sort(carved), single
    carved = _some_by_share(labels, counts, share, np.random.default_rng(seed))
    return np.setdiff1d(np.arange(len(train)), carved), carved, single


def _some_by_share(labels: np.ndarray, counts: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Random rows, in order: a share of each class by largest remainder, at least one in all, never a whole class."""
    spare = np.maximum(counts - 1, 0)
    sizes = np.minimum(np.floor(counts * share).astype(int), spare)
    remainders = np.where(sizes < spare, counts * share - sizes, -1)
    missing = min(math.ceil(counts.sum() * share), spare.sum()) - sizes.sum()
    order = np.lexsort((rng.random(len(counts)), -remainders))
    sizes[order[: max(missing, 0)]] += remainders[order[: max(missing, 0)]] >= 0
    rows = rng.permutation(len(labels))
    place = np.argsort(labels[rows], kind="stable")  # the rows of each class together, in random order
    rank = np.empty(len(labels), int)
    rank[place] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(rows[rank < sizes[labels[rows]]])


def check_classes(train: Dataset) -> None:
    """Check that train has at least two classes.

    Raises:
        UserError: train has only one class.
    """
    if len(np.unique(column(train, "label"))) < 2:
        raise UserError("train has images of one class only: add images of another, a classifier needs at least two")


def some_of_each(train: Dataset, count: int, order: np.ndarray) -> np.ndarray:
    """The first `count` rows of each class, int64, taken in the given order of the rows.

    Raises:
        UserError: a class has fewer rows.
    """
    labels, names = column(train, "label"), train.features["label"].names
    counts = np.bincount(labels, minlength=len(names))
    if short := [f"{names[i]!r} ({n})" for i, n in enumerate(counts) if n < count]:
        raise UserError(f"samples_per_class: {count} is more than train has of {listed(short)}: lower it")
    return np.concatenate([order[labels[order] == c][:count] for c in range(len(names))])
