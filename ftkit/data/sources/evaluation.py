"""Data to evaluate a model on: read whole, never carved; labels go by name to the model's classes."""

from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.config.configuration import Evaluation
from ftkit.data.sources.load import check_files, load_data, read_raw
from ftkit.data.sources.split_names import choose_splits, split_of
from ftkit.data.sources.splits import some, with_classes
from ftkit.data.sources.suffixes import image_suffixes
from ftkit.errors import UserError
from ftkit.files import natural_sorted
from ftkit.tasks import Task

ALL = "all"  # the name of data without splits


class Evaluated(NamedTuple):
    """The images to evaluate on.

    Attributes:
        split: `train`, `validation` or `test`, or `all` for data without splits.
        rows: the images, with the columns `image`, `label` (the model's classes) and `index`.
        drawn_from: the number of images that `rows` were drawn from, by split; empty if they are all.
    """

    split: str
    rows: Dataset
    drawn_from: dict[str, int]


def load_evaluation(config: Evaluation, task: Task) -> Evaluated:
    """The images that an evaluation asks for: a split of the run's own data, as the run split them, or other data.

    Other data are read whole if they have no splits. Of several splits, it is test, or the one that `split` names.

    Args:
        task: the model's task, whose classes the labels are matched with by name.

    Raises:
        UserError: the data are missing or invalid, have no such split, or classes that the model does not know.
    """
    args, wanted = config.data, config.evaluation.split
    if config.own_data:
        own = load_data(args)
        split: str = wanted or "test"
        drawn = {split: own.drawn_from[split]} if split in own.drawn_from else {}
        return Evaluated(split, task.as_known(own[split], args, f"split {split} of the data"), drawn)
    source = args.data_dir or args.dataset or ""
    lone = _folder_of_a_class(args)
    raw, label = (DatasetDict(train=lone), "label") if lone is not None else read_raw(args, need_train=False)
    split, rows = _chosen(raw, args, wanted, source)
    splits = with_classes({split: rows}, args, label, join=False)
    check_files(splits, args)
    rows = task.as_known(splits[split], args, source)
    limits = {"train": args.max_train_samples, "validation": args.max_validation_samples}
    fewer = some(rows, limits.get(wanted or "test", args.max_test_samples), args.split_seed)
    return Evaluated(split, fewer, {} if len(fewer) == len(rows) else {split: len(rows)})


def training_images(config: Evaluation, otherwise: Dataset) -> Dataset:
    """The train split of an evaluation's data, with its own classes; `otherwise` if they have none."""
    args = config.data
    if config.own_data:
        return load_data(args)["train"]
    raw, label = read_raw(args, need_train=False)
    train = [rows for name, rows in raw.items() if split_of(name) == "train" and len(raw) > 1]
    if not train:
        return otherwise
    splits = with_classes({"train": train[0]}, args, label, join=False)
    check_files(splits, args)
    return splits["train"]


def _chosen(raw: DatasetDict, args: DataArguments, split: str | None, source: str) -> tuple[str, Dataset]:
    """The split to evaluate, and what it is called."""
    given = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    wanted = split or "test"
    if len(raw) == 1 and given[wanted] is None:
        name, rows = next(iter(raw.items()))
        found = split_of(name) or "train"
        if split in (None, found):
            return (ALL if split is None and found == "train" else found), rows
        raise UserError(
            f"split: {source} has no {split} split: leave split out to evaluate all its {len(rows):,} images",
            fix={"split": None},
        )
    chosen = choose_splits(raw, args, source, need_train=False)
    if wanted in chosen:
        own = next(name for name, rows in raw.items() if rows is chosen[wanted])
        return (wanted if given[wanted] is None else own), chosen[wanted]
    other = next((name for name in ("validation", "train") if name in chosen), None)
    fix = {"split": other} if other else {"test_split": next(iter(raw))}
    key, value = next(iter(fix.items()))
    raise UserError(
        f"split: {source} has no {wanted} split, but {', '.join(raw)}: name the one to evaluate, such as --{key} "
        f"{value}",
        fix=fix,
    )


def _folder_of_a_class(args: DataArguments) -> Dataset | None:
    """The images of a folder that holds nothing else, which is the folder of the class that it is called by."""
    folder = Path(args.data_dir or "")
    if not args.data_dir or not folder.is_dir():
        return None
    files, suffixes = [path for path in folder.iterdir() if not path.name.startswith(".")], image_suffixes()
    if not files or not all(path.is_file() and path.suffix.lower() in suffixes for path in files):
        return None
    columns = {"image": [str(path) for path in natural_sorted(files)], "label": [folder.name] * len(files)}
    return Dataset.from_dict(columns, features=Features(image=Image(), label=ClassLabel(names=[folder.name])))
