"""Merges class names that differ only in spelling, and matches the names in data with those of a model."""

import logging
from collections import Counter
from typing import Any

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from ftkit.config import DataArguments
from ftkit.errors import UserError, listed
from ftkit.files import natural_sorted
from ftkit.tasks.single_label.similar import alike, look, spelling, told_apart
from ftkit.tasks.single_label.targets import keep_classes, relabel

logger = logging.getLogger(__name__)
_SHOWN = 10  # classes in a message


def join_similar(splits: dict[str, Dataset], label: str, join: bool | None) -> dict[str, Dataset]:
    """Merge names in the column `label` that look alike, under the most frequent spelling.

    Args:
        join: `merge_similar_labels`; None only warns, and False leaves them as they are.
    """
    counts: Counter[str] = Counter()
    for dataset in splits.values():
        counts.update(_counts(dataset, label))
    groups = alike(counts)
    if not groups or join is False:
        return splits
    if join is None:
        logger.warning(
            "  class names that look alike: %s. Set merge_similar_labels: true to merge them, or false to keep them "
            "apart",
            told_apart(groups, counts),
        )
        return splits
    logger.info("  %-12s class names that look alike: %s", "merged", told_apart(groups, counts))
    return {split: _respelled(dataset, label, spelling(counts)) for split, dataset in splits.items()}


def _counts(dataset: Dataset, label: str) -> Counter[str]:
    """How often each name occurs in the column; empty if it holds neither text nor class labels."""
    feature = dataset.features[label]
    if not isinstance(feature, ClassLabel) and "string" not in getattr(feature, "dtype", ""):
        return Counter()
    found = pc.value_counts(dataset.select_columns(label).with_format("arrow")[:][label]).to_pylist()
    counts = {row["values"]: row["counts"] for row in found}
    if isinstance(feature, ClassLabel):
        return Counter({name: counts.get(number, 0) for number, name in enumerate(feature.names)})
    return Counter({name: n for name, n in counts.items() if name is not None})


def _respelled(dataset: Dataset, label: str, spellings: dict[str, str]) -> Dataset:
    """`dataset` with each name in the column `label` replaced by its spelling."""
    feature, values = dataset.features[label], dataset[label][:]
    if not isinstance(feature, ClassLabel):
        joined = [spellings.get(value, value) for value in values]
        return dataset.remove_columns(label).add_column(label, joined, feature=feature)
    names = [spellings.get(name, name) for name in feature.names]
    kept = list(dict.fromkeys(names))
    numbers = [kept.index(name) for name in names]
    joined = [value if value is None or value < 0 else numbers[value] for value in values]
    return dataset.remove_columns(label).add_column(label, joined, feature=ClassLabel(names=kept))


def as_known(dataset: Dataset, names: list[str], args: DataArguments, what: str) -> Dataset:
    """Renumber the labels of `dataset` by name, for a model of the classes `names`.

    `args.classes` selects the classes to keep; with `args.merge_similar_labels`, a name that looks like one of the
    model's counts as that class.

    Raises:
        UserError: a row's class is not in `names`; `what` names the dataset in the message.
    """
    counts = +_counts(dataset, "label")
    looks = Counter(map(look, names))
    known = {look(name): name for name in names if looks[look(name)] == 1}
    similar = {name: known[look(name)] for name in counts if name not in names and look(name) in known}
    if args.merge_similar_labels and similar:
        logger.info("  %-12s class names that look like the model's: %s", "merged", _pairs(similar, counts))
        dataset, similar = _respelled(dataset, "label", similar), {}
    if args.classes is not None:
        dataset = keep_classes(dataset, args.classes, what, names)
    counts = +_counts(dataset, "label")
    if counts.keys() - set(names):
        raise _unknown(counts, names, similar, what)
    return relabel(dataset, names, what)


def _unknown(counts: Counter[str], names: list[str], similar: dict[str, str], what: str) -> UserError:
    """The error for classes that a model does not know.

    Args:
        counts: the number of images of each class.
        similar: for classes that look like one of the model's, that class.
    """
    unknown = natural_sorted(counts.keys() - set(names))
    joined = {name: similar[name] for name in unknown if name in similar}
    usable = natural_sorted({joined.get(name, name) for name in counts} & set(names))
    fix: dict[str, Any] = {}
    how = []
    if joined:
        fix["merge_similar_labels"] = True
        how.append(f"merge_similar_labels: true merges those that look like the model's ({_pairs(joined, counts)})")
    if len(joined) < len(unknown) and usable:
        fix["classes"] = usable
        n = sum(count for name, count in counts.items() if joined.get(name, name) in names)
        shown = " ".join(map(repr, usable[:_SHOWN])) + (" …" if len(usable) > _SHOWN else "")
        how.append(f"classes: {shown} drops the others and evaluates {n:,} of {counts.total():,} images")
    counted = (f"{name!r} ({counts[name]:,} images)" for name in unknown)
    return UserError(
        f"{what} has classes that the model does not know: {listed(counted, _SHOWN)}; it knows "
        f"{listed(map(repr, names), _SHOWN)}: "
        f"{', and '.join(how) or 'labels are matched by name: rename them to those of the model'}",
        fix=fix,
    )


def _pairs(similar: dict[str, str], counts: Counter[str]) -> str:
    return told_apart(alike([*similar, *similar.values()]), counts)
