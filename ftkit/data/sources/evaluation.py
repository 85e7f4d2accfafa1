"""Data to evaluate a model on: read whole, never carved; labels go by name to the model's classes."""

from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ftkit.config import DataArguments
from ftkit.config.configuration import Evaluation
from ftkit.data.sources.ledger import Ledger
from ftkit.data.sources.load import Raw, check_files, load_data, read_raw
from ftkit.data.sources.paths import named_files
from ftkit.data.sources.splits import canonical, some
from ftkit.data.sources.suffixes import image_suffixes
from ftkit.errors import UserError
from ftkit.files import natural_sorted
from ftkit.tasks import Task
from ftkit.tasks.columns import find_column

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


def load_evaluation(config: Evaluation, task: Task, ledger: Ledger) -> Evaluated:
    """The images that an evaluation asks for: a split of the run's own data, as the run split them, or other data.

    Other data are read whole if they have no splits. Of several splits, it is test, or the one that `split` names.

    Args:
        task: the model's task, whose classes the labels are matched with by name.
        ledger: takes an account of what is not used.

    Raises:
        UserError: the data are missing or invalid, have no such split, or classes that the model does not know.
    """
    args, wanted = config.data, config.evaluation.split
    if config.own_data:
        own = load_data(args, ledger)
        split: str = wanted or "test"
        drawn = {split: own.drawn_from[split]} if split in own.drawn_from else {}
        return Evaluated(split, task.as_known(own[split], args, f"split {split} of the data"), drawn)
    source = args.data_dir or args.dataset or ""
    lone = _folder_of_a_class(args)
    raw = Raw(lone, args, "label", None, ledger) if lone else read_raw(args, ledger)
    split, rows = _chosen(raw.splits, args, wanted, source)
    for name, other in raw.splits.items():
        if other is not rows:
            ledger.leave_rows(name, len(other), "not in the split that is evaluated")
            image = find_column(other, "image_column", args.image_column, (Image,), "picture")
            ledger.read(Path(file) for file in named_files(other.select_columns(image), image) if file is not None)
    splits = canonical({split: rows}, raw.args, raw.label_column, for_training=False)
    check_files(splits, raw)
    rows = task.as_known(splits[split], args, source)
    limits = {"train": args.max_train_samples, "validation": args.max_validation_samples}
    fewer = some(rows, limits.get(wanted or "test", args.max_test_samples), args.split_seed)
    return Evaluated(split, fewer, {} if len(fewer) == len(rows) else {split: len(rows)})


def training_images(config: Evaluation, otherwise: Dataset) -> Dataset:
    """The train split of an evaluation's data, with its own classes; `otherwise` if they have none."""
    args = config.data
    if config.own_data:
        return load_data(args)["train"]
    raw = read_raw(args, Ledger())
    if "train" not in raw.splits or len(raw.splits) == 1:
        return otherwise
    splits = canonical({"train": raw.splits["train"]}, raw.args, raw.label_column, for_training=False)
    check_files(splits, raw)
    return splits["train"]


def _chosen(raw: DatasetDict, args: DataArguments, split: str | None, source: str) -> tuple[str, Dataset]:
    """The split to evaluate, and what it is called."""
    wanted = split or "test"
    own = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}[wanted]
    found, rows = next(iter(raw.items()))
    if wanted in raw:
        return own or wanted, raw[wanted]
    if len(raw) == 1 and own is None and split is None:
        return (ALL if found == "train" else found), rows
    if len(raw) == 1:
        raise UserError(
            f"split: {source} has no {wanted} split: leave split out to evaluate all its {len(rows):,} images",
            fix={"split": None, f"{wanted}_split": None},
        )
    other = "validation" if "validation" in raw else "train"
    raise UserError(
        f"split: {source} has no {wanted} split, but {' and '.join(raw)}: name the one to evaluate, such as --split "
        f"{other}",
        fix={"split": other},
    )


def _folder_of_a_class(args: DataArguments) -> DatasetDict | None:
    """The images of a folder that holds nothing else, which is the folder of the class that it is called by."""
    folder = Path(args.data_dir or "")
    if not args.data_dir or not folder.is_dir():
        return None
    files, suffixes = [path for path in folder.iterdir() if not path.name.startswith(".")], image_suffixes()
    if not files or not all(path.is_file() and path.suffix.lower() in suffixes for path in files):
        return None
    columns = {"image": [str(path) for path in natural_sorted(files)], "label": [folder.name] * len(files)}
    features = Features(image=Image(), label=ClassLabel(names=[folder.name]))
    return DatasetDict(train=Dataset.from_dict(columns, features))
