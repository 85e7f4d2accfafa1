"""Data to evaluate a model on: nothing is carved, and labels are matched to the model's classes by name."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.config.configuration import Evaluation
from ftkit.console import fact
from ftkit.data.sources.ledger import Ledger, is_packed, scan
from ftkit.data.sources.load import Raw, check_files, load_data, read_raw
from ftkit.data.sources.paths import named_files
from ftkit.data.sources.split_names import is_none, is_split_like, split_of
from ftkit.data.sources.splits import Splits, canonical, some
from ftkit.data.sources.table_files import find_tables
from ftkit.data.sources.unusable import Unusable
from ftkit.errors import UserError
from ftkit.files import natural_sorted
from ftkit.tasks import DEFAULT_TASK, Task

ALL = "all"  # the name of data without splits
_PREDICT = "recipes/predict.py classifies images without labels"


class Evaluated(NamedTuple):
    """The images to evaluate on.

    Attributes:
        split: `train`, `validation` or `test`, or `all` for data without splits.
        rows: the images, with the columns `image`, `label` (the model's classes) and `index`.
        drawn_from: how many images `rows` were drawn from, by split; empty if all are used.
        ledger: what is not used.
    """

    split: str
    rows: Dataset
    drawn_from: dict[str, int]
    ledger: Ledger


def load_evaluation(config: Evaluation, task: Task) -> Evaluated:
    """The images to evaluate on: a split of the run's own data, as the run split them, or of other data.

    Other data without splits are used whole. Among several splits, `split` chooses one (default: test); the others may
    be unusable.

    Args:
        task: the model's task; labels are matched to its classes by name.

    Raises:
        UserError: the data are missing or invalid, lack the split, or have classes that the model does not know.
    """
    args, wanted = config.data, config.evaluation.split
    if config.own_data:
        own, ledger = _as_the_run_did(args)
        split: str = wanted or "test"
        drawn = {split: own.drawn_from[split]} if split in own.drawn_from else {}
        return Evaluated(split, task.as_known(own[split], args, f"split {split} of the data"), drawn, ledger)
    source = args.data_dir or args.dataset or ""
    if lone := _folder_of_a_class(args, task):
        raw, unusable = lone, dict[str, str]()
    else:
        raw, unusable = _read(args)
    split, rows = _chosen(raw.splits, unusable, args, wanted)
    for name, other in raw.splits.items():
        if other is not rows:
            raw.ledger.leave_rows(name, len(other), "not in the split that is evaluated")
            for image in [name for name, feature in other.features.items() if isinstance(feature, Image)]:
                files = named_files(other.select_columns(image), image)
                raw.ledger.read(Path(file) for file in files if file is not None)
    for problem in dict.fromkeys(unusable.values()):
        fact("not used", problem)
    splits = canonical({split: rows}, raw.args, raw.label_column, for_training=False)
    check_files(splits, raw)
    rows = task.as_known(splits[split], args, source)
    limits = {"train": args.max_train_samples, "validation": args.max_validation_samples}
    fewer = some(rows, limits.get(wanted or "test", args.max_test_samples), args.split_seed)
    return Evaluated(split, fewer, {} if len(fewer) == len(rows) else {split: len(rows)}, raw.ledger)


def training_images(config: Evaluation, otherwise: Dataset) -> Dataset:
    """The train split of an evaluation's data, with its own classes; `otherwise` if there is none."""
    args = config.data
    if config.own_data:
        return _as_the_run_did(args)[0]["train"]
    raw, unusable = _read(args)
    if "train" not in raw.splits or len(raw.splits) + len(unusable) == 1:
        return otherwise
    splits = canonical({"train": raw.splits["train"]}, raw.args, raw.label_column, for_training=False)
    check_files(splits, raw)
    return splits["train"]


def _as_the_run_did(args: DataArguments) -> tuple[Splits, Ledger]:
    """The splits of the run's own data, and what is not used of them."""
    ledger = Ledger()
    try:
        return load_data(args, ledger), ledger
    except Unusable as error:
        raise UserError(f"{error.problem}: the data have changed since the run: restore them") from None


def _read(args: DataArguments) -> tuple[Raw, dict[str, str]]:
    """The splits of other data that have images and labels, and what is wrong with each other split."""
    unusable: dict[str, str] = {}
    while True:
        try:
            raw = read_raw(args, Ledger())
        except Unusable as error:
            if unusable.keys() >= set(error.splits):  # left out before, so there is no other split
                raise UserError(f"{next(iter(unusable.values()))}; {_PREDICT}") from None
            unusable |= dict.fromkeys(error.splits, f"{error.problem}: {error.advice}")
            args = replace(args, **error.without)
        else:
            break
    for split, problem in _without_labels(raw).items():
        unusable[split] = f"{args.data_dir or args.dataset}: {problem}"
        if n := len(raw.splits.pop(split)):
            raw.ledger.leave_rows(split, n, problem)
    return raw, unusable


def _without_labels(raw: Raw) -> dict[str, str]:
    """What is wrong with each split without images, and with each without labels if another split has labels."""
    whole = {split: rows for split, rows in raw.splits.items() if len(rows)}
    found = {split: f"{split} holds no images: add some" for split in raw.splits if split not in whole}
    if (label := _label_column(whole, raw.label_column)) is None:
        return found
    for split, rows in whole.items():
        if label not in rows.column_names:
            found[split] = f"{split} has no labels: add its column {label!r}"
            continue
        train = whole.get("train", rows)
        known = {"train": train if label in train.column_names else rows, split: rows}
        if DEFAULT_TASK.lacks_targets(known, label, split):
            found[split] = f"{split} has rows without a label (empty, or -1 for a hidden one): label them"
    return found


def _label_column(splits: dict[str, Dataset], given: str | None) -> str | None:
    """The label column of the first split that has one; None if none has: `canonical` then raises."""
    for rows in splits.values():
        with suppress(UserError):
            return DEFAULT_TASK.target_column(rows, given)
    return None


def _chosen(
    found: DatasetDict, unusable: dict[str, str], args: DataArguments, split: str | None
) -> tuple[str, Dataset]:
    """The name and the rows of the split to evaluate.

    Raises:
        UserError: it is missing or `unusable`.
    """
    wanted, source = split or "test", args.data_dir or args.dataset or ""
    own = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}[wanted]
    named = None if is_none(own) else own
    called = split_of(Path(source).name)  # the folder or file may be a split itself
    if [*found] == ["train"] and not unusable and called in ("validation", "test"):
        found = DatasetDict({called: found["train"]})
    if wanted in found:
        return named or wanted, found[wanted]
    other = "validation" if "validation" in found else next(iter(found), None)
    if other is None:
        problems = unusable.values() or [f"{source}: no split is left to evaluate"]
        raise UserError(f"{'; '.join(dict.fromkeys(problems))}; {_PREDICT}")
    if wanted in unusable:
        raise UserError(f"{unusable[wanted]}, or evaluate another split with --split {other}", fix={"split": other})
    if len(found) == 1 and not unusable:
        if split is None and named is None:
            return (ALL if other == "train" and own is None else other), found[other]
        fix = {key: None for key, value in (("split", split), (f"{wanted}_split", named)) if value is not None}
        raise UserError(
            f"split: {source} has no {wanted} split: leave {' and '.join(fix)} out to evaluate all its "
            f"{len(found[other]):,} images",
            fix=fix,
        )
    raise UserError(
        f"split: {source} has no {wanted} split, but {' and '.join(found)}: name the one to evaluate, such as --split "
        f"{other}",
        fix={"split": other},
    )


def _folder_of_a_class(args: DataArguments, task: Task) -> Raw | None:
    """The images of a folder that holds nothing else, labelled by its name; None for any other folder.

    Raises:
        UserError: its name is a split's, so its images have no labels.
    """
    folder = Path(args.data_dir or "")
    if not args.data_dir or not folder.is_dir():
        return None
    if any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        return None
    root = scan(folder)
    packed = [name for name in root.files if is_packed(name) or name.lower().endswith(".parquet")]
    if packed or not root.images or find_tables(root, args)[0]:
        return None
    if is_split_like(folder.name) and folder.name not in task.names:
        raise UserError(f"data_dir: {folder} holds images without class folders: move them to <class>/; {_PREDICT}")
    files = [*map(str, natural_sorted(root.images))]
    features = Features(image=Image(), label=ClassLabel(names=[folder.name]))
    rows = Dataset.from_dict({"image": files, "label": [folder.name] * len(files)}, features)
    return Raw(DatasetDict(train=rows), args, "label", root, Ledger(folder))
