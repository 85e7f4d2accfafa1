"""Which split a name stands for, and which of a source's splits become train, validation and test."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from ftkit.config import DataArguments
from ftkit.config.arguments.data import NO_SPLIT
from ftkit.errors import UserError, as_options, listed, nearest

logger = logging.getLogger(__name__)
T = TypeVar("T")

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": ("train", "training", "trn", "trainval", "trainvalid"),
    "validation": ("validation", "validate", "valid", "val", "dev"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_NAMES.items() for word in words}
_EITHER = {"eval", "evaluation", "holdout", "heldout"}  # ambiguous: validation or test
_FURTHER = {
    "extra",
    "unlabeled",
    "unlabelled",
    "unsupervised",
    "pred",
    "predict",
    "prediction",
}  # never train, validation or test
_ALL = {*_SPLIT_OF_WORD, *_EITHER, *_FURTHER}
# Column names that always mean splits, and those that do if the values are names of splits.
_SPLIT_COLUMNS = {"split", "splits", "datasplit", "partition", "fold", "folds", "kfold"}
_USUAL_COLUMNS = _SPLIT_COLUMNS | {"set", "subset", "dataset", "usage", "phase", "purpose"}
# Words that may stand beside splits in the name of a file of splits.
_OF_SPLITS = _SPLIT_COLUMNS | {
    "",
    "list",
    "lists",
    "file",
    "files",
    "images",
    "names",
    "ids",
    "index",
    "indices",
    "cls",
}
_MOST = 8  # distinct values that a split column of any other name may have
_YES, _NO = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no"}


def _words(name: str) -> set[str]:
    """The words of a name in lower case: `imagenet1k-TrainSet_00` has `imagenet`, `k`, `train` and `set`."""
    apart = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = re.findall(r"[^\W\d_]+", apart.casefold())
    return {re.sub(r"(?<=.)(set|data|images|imgs|split)$", "", word) for word in words}


def split_of(name: str) -> str | None:
    """The split that a name stands for: `train`, `validation`, `test`, or None.

    A split's word counts anywhere between delimiters, digits or changes of case, in any case: `flowers_TEST-00`,
    `train2017`, `valImages`. In a path, the last part with such a word decides. A name with words for train and
    validation is train (`train_val.txt`); one with any other pair is no split (`train_test_split.csv`).
    """
    for part in reversed(re.split(r"[/\\]", name)):
        found = {_SPLIT_OF_WORD[word] for word in _words(part) if word in _SPLIT_OF_WORD}
        if found == {"train", "validation"}:
            return "train"
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def is_split_like(name: str) -> bool:
    """Whether a name looks like a split, even an ambiguous one: `evaluation`, `extra`, `train_test`."""
    return not _ALL.isdisjoint(_words(name))


def splits_named(name: str) -> set[str]:
    """The splits that a file's name stands for if it says nothing else: `train_test_split`, `list_eval_partition`."""
    words = _words(name)
    if not words or not words <= _ALL | _OF_SPLITS:
        return set()
    found = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    return found or ({"validation", "test"} if words & (_EITHER | _SPLIT_COLUMNS) else set())


def looks_like_splits(column: str) -> bool:
    """Whether a column may hold splits, judged by its name: `subset`, `Data Set`, `is_valid`."""
    return _plain(column) in _USUAL_COLUMNS or split_of(column) is not None


def is_none(given: str | None) -> bool:
    """Whether a key such as `test_split` is set to `none`, in upper or lower case."""
    return given is not None and given.casefold() == NO_SPLIT


def choose_splits(
    found: Mapping[str, T], args: DataArguments, source: object, need_train: bool = True
) -> dict[str, T]:
    """Choose train, validation and test among a source's splits: those that `args` name, else by name. Log the others.

    Args:
        found: the source's splits by their own names, which may be paths.
        source: the file, folder or dataset, for messages.
        need_train: whether a source without train is an error; evaluation needs none.

    Returns:
        a subset of `train`, `validation`, `test`. A single split with an unrelated name is train.

    Raises:
        UserError: a named split is missing; several names stand for one split, or one is ambiguous; or there is no
            train.
    """
    given = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    chosen = {}
    for split, name in given.items():
        if name == split and not any(name == other or split_of(other) == split for other in found):
            given[split] = None  # `test_split: test` without such a split: the default
        elif name is not None and not is_none(name):
            chosen[split] = _named(split, name, found, source)
    problems, fix = [], {}
    for split in SPLITS:
        called = [name for name in found if split_of(name) == split and name not in chosen.values()]
        if given[split] is None and called:
            chosen[split] = min(called, key=lambda name: (name.casefold() not in SPLIT_NAMES[split], len(name)))
            if len(called) > 1:
                problems.append(f"{listed(called)} all look like {split}")
                fix[f"{split}_split"] = chosen[split]
    left = [name for name in found if name not in chosen.values()]
    if not chosen and len(left) == 1 and not _words(left[0]) & (_EITHER | _FURTHER):
        return {"train": found[left[0]]}
    if need_train and args.need_train and "train" not in chosen:
        fix |= _without_train(left, chosen)
        chosen["train"] = fix["train_split"]
        problems.append(
            f"none of {listed(found)} is called train" if left else f"no train split beside {chosen['train']}"
        )
    missing = [split for split in ("test", "validation") if split not in chosen and given[split] is None]
    unclear = [name for name in found if name not in chosen.values() and _words(name) & _EITHER]
    for split, name in zip([split for split in missing if f"{split}_split" not in fix], unclear, strict=False):
        problems.append(f"{name} may be validation or test")
        fix[f"{split}_split"] = name
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}: name the splits, such as {as_options(fix)}", fix=fix)
    if left and "train" in chosen:
        logger.info("  %-12s splits of %s: %s", "not used", source, listed(left))
    return {split: found[chosen[split]] for split in SPLITS if split in chosen}


def _without_train(left: list[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """The settings that use the first unused split as train, or else the validation or test split."""
    if left:
        return {"train_split": left[0]}
    split, name = next(iter(chosen.items()))
    return {"train_split": name, f"{split}_split": NO_SPLIT}


def _named(split: str, given: str, found: Iterable[str], source: object) -> str:
    """The split that the user named: by its exact name, in another case, or as one of ftkit's names."""
    for matches in (
        [name for name in found if name == given],
        [name for name in found if name.casefold() == given.casefold()],
        [name for name in found if given in SPLITS and split_of(name) == given],
    ):
        if len(matches) == 1:
            return matches[0]
    raise UserError(f"{split}_split: {given!r} is not a split of {source}{nearest(given, found)}: {listed(found)}")


def split_column(
    columns: Mapping[str, Collection[Any]], given: str | None, source: object
) -> tuple[str, dict[Any, str]] | None:
    """Find the column that assigns rows to splits, and the split name that each of its values stands for.

    Args:
        columns: the distinct values of each column to consider: not images or labels.
        given: the value of `split_column`; `none` for no column.
        source: the file or dataset, for messages.

    Returns:
        The column and `{value: name}`, for `choose_splits`; spellings that differ by case share a name. A boolean
        `is_valid` gives validation and train, a boolean `is_train` train and test. None without such a column.

    Raises:
        UserError: `given` is not a column; it is unclear which column holds splits, or what its values mean.
    """
    if is_none(given):
        return None
    if given is not None:
        if given not in columns:
            raise UserError(
                f"split_column: {given!r} is not a column of {source}{nearest(given, columns)}: {listed(columns)}"
            )
        return given, _flags(given, columns[given]) or _names(columns[given])
    usual: dict[str, dict[Any, str]] = {}
    unusual: dict[str, dict[Any, str]] = {}
    for column, values in columns.items():
        if flags := _flags(column, values):
            usual[column] = flags
        elif any(map(split_of, map(str, values))) and all(map(is_split_like, map(str, values))):
            if _plain(column) in _USUAL_COLUMNS:
                usual[column] = _names(values)
            elif len(values) <= _MOST and all(_words(str(value)) <= _ALL for value in values):  # not keys or paths
                unusual[column] = _names(values)
    named = [
        column
        for column, values in columns.items()
        if _plain(column) in _SPLIT_COLUMNS
        or (_plain(column) in _USUAL_COLUMNS and any(map(split_of, map(str, values))))
    ]
    if not usual and named:
        raise _not_words(named[0], columns[named[0]], source)
    found = list(usual) or [column for column, names in unusual.items() if len(set(names.values())) > 1]
    if len(found) > 1 or (found and not usual):
        what = "all look like the split column" if len(found) > 1 else "holds names of splits"
        raise UserError(
            f"{source}: {listed(found)} {what}: set --split_column to {found[0]!r} to use it, or to {NO_SPLIT}",
            fix={"split_column": found[0]},
        )
    return (found[0], usual[found[0]]) if found else None


def _plain(column: str) -> str:
    return re.sub(r"[\W\d_]", "", column).casefold()


def _names(values: Collection[Any]) -> dict[Any, str]:
    """A name for each value: the first of the spellings that differ only in case."""
    first: dict[str, str] = {}
    return {value: first.setdefault(str(value).strip().casefold(), str(value).strip()) for value in values}


def _flags(column: str, values: Collection[Any]) -> dict[Any, str] | None:
    """The splits of a boolean column named after a split, such as `is_valid`; None for any other column."""
    split = split_of(column)
    answers = {value: str(value).strip().casefold() for value in values}
    if split is None or len(answers) != 2 or not {*answers.values()} <= _YES | _NO:
        return None
    other = "test" if split == "train" else "train"
    return {value: split if answer in _YES else other for value, answer in answers.items()}


def _not_words(column: str, values: Collection[Any], source: object) -> UserError:
    names = sorted({*_names(values).values()})
    wrong = next((name for name in names if not is_split_like(name)), names[0])
    short = {split: [name for name in names if split.startswith(name.casefold())] for split in SPLITS}
    meant = {split: found[0] for split, found in short.items() if len(found) == 1}
    if {*names} == {"0", "1", "2"} or {*names} == {"0", "1"}:
        meant = dict(zip(SPLITS if len(names) == 3 else ("train", "test"), names, strict=True))
    if {*meant.values()} != {*names} or "train" not in meant:
        return UserError(
            f"{source}: split {wrong!r} in the column {column!r} is not one of {', '.join(SPLITS)}: correct it, "
            f"or set --split_column {NO_SPLIT} to ignore the column",
            fix={"split_column": NO_SPLIT},
        )
    settings = {f"{split}_split": name for split, name in meant.items()}
    return UserError(
        f"{source}: the split column {column!r} holds {listed(names)}, which are not "
        f"{', '.join(SPLITS)}: map them, such as --split_column {column!r} "
        f"{as_options(settings)}, or set --split_column {NO_SPLIT}",
        fix={"split_column": column, **settings},
    )
