"""Which images to read."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ftkit.config.values import Options, from_json
from ftkit.errors import Advice

# The formats of `data_dir`, for help and messages; `ftkit.data.sources.load` recognises them.
FORMATS = (
    "class folders (also in a zip or tar file), IDX files, CIFAR batches, parquet or webdataset files, a CSV or JSON "
    "file of paths and labels, or a save_to_disk folder"
)
EMBEDDED = ("digits", "blobs")  # need no files
NO_SPLIT = "none"  # the value of `test_split`, `validation_split` or `split_column` for no such split


@dataclass
class DataArguments:
    """Which images to read, and how to split them.

    Attributes:
        need_train: whether the data must have a train split.
    """

    need_train: ClassVar[bool] = True

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "digits, blobs, mnist, fashion_mnist, cifar10, cifar100, or the name of any dataset on the Hub."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": f"A local folder or file: {FORMATS}."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration name of a Hub dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "A branch, tag or commit of the Hub dataset."}
    )
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "The split to train on: its name as a file or folder, or in split_column. Default: recognised by "
            "its name. '.': the folders of data_dir are classes, whatever they are called."
        },
    )
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "The split that chooses the checkpoint. Default: recognised by its name. none: carved out of "
            "train."
        },
    )
    test_split: str | None = field(
        default=None,
        metadata={
            "help": "The split that is reported; nothing is chosen on it. Default: recognised by its name. none: "
            "carved out of train."
        },
    )
    split_column: str | None = field(
        default=None,
        metadata={"help": "The column that holds each row's split. Default: found by its name. none: no column."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: found by its type."})
    label_column: str | None = field(
        default=None,
        metadata={"help": "Default: found by its type or name. '.': the names of class folders, even beside a table."},
    )
    image_dir: str | None = field(
        default=None,
        metadata={"help": "The folder of the images that a table names. Default: the folder of the table."},
    )
    validation_size: float = field(
        default=0.1, metadata={"help": "Share of train that becomes validation if there is no such split."}
    )
    test_size: float = field(
        default=0.2, metadata={"help": "Share of train that becomes test if there is no such split."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits and of few-shot sampling."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a random subset of this many images."}
    )
    samples_per_class: int | None = field(
        default=None, metadata={"help": "Few-shot: train on this many images of each class."}
    )
    max_validation_samples: int | None = field(
        default=None, metadata={"help": "Validate on a random subset of this many images."}
    )
    max_test_samples: int | None = field(
        default=None, metadata={"help": "Test on a random subset of this many images; report and card say so."}
    )
    classes: list[str] | None = field(
        default=None,
        metadata={"help": "Keep only the classes with these names: a b c, or a,b,c."},
    )
    merge_similar_labels: bool | None = field(
        default=None,
        metadata={
            "help": "true: merge classes whose names differ only in capitals, spaces, underscores, invisible "
            "characters or Unicode form, under the most frequent spelling; false: keep them apart. Default: false, "
            "with a warning."
        },
    )
    augment: list[str] | None = field(
        default=None,
        metadata={
            "help": "Augmentations of the training images, in order; a recipe may add options: "
            "{random_crop: {padding: 2}}. Default: none."
        },
    )
    image_transform: Options | None = field(
        default=None,
        metadata={
            "help": "timm's training transform for single images (crop, flip, colour jitter, AutoAugment, …), with "
            "options of timm.data.create_transform: {auto_augment: rand-m9-mstd0.5} (JSON). Needs data_engine: "
            "stream. Default: none."
        },
    )
    data_engine: Literal["auto", "tensor", "stream"] = field(
        default="auto",
        metadata={
            "help": "tensor: decode all images once, into a memory map; stream: decode batch by batch, in workers; "
            "auto: tensor if the decoded images fit into tensor_cache_gb and on the disk."
        },
    )
    tensor_cache_gb: float = field(
        default=8.0, metadata={"help": "The largest memory map that auto makes, in GB (10^9 bytes)."}
    )
    test_time_augmentation: Literal["none", "flip", "flip_and_shift"] = field(
        default="none",
        metadata={
            "help": "flip: evaluate again, with logits averaged over each image and its mirror image; "
            "flip_and_shift: over two shifts by a pixel as well. Reported beside the plain evaluation."
        },
    )
    on_bad_image: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "What to do about images that do not decode: stop before training, or leave them out."},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "The folder for decoded images (default: ftkit/ under the Hugging Face home)."}
    )

    def __post_init__(self) -> None:
        if self.augment is not None and len(self.augment) == 1 and str(self.augment[0]).startswith("["):
            steps = from_json(self.augment[0])
            self.augment = steps if isinstance(steps, list) else self.augment
        if isinstance(self.image_transform, str):
            self.image_transform = from_json(self.image_transform)

    def names_class(self, name: str) -> bool:
        """Whether `classes` keeps the class of this name; a text of several names has commas between them."""
        given = self.classes or [name]
        return name in given or any(name == part.strip() for text in given for part in text.split(","))

    def check(self) -> list[str]:
        """The errors in these arguments, one sentence each."""
        errors: list[str] = [
            f"{name}: {getattr(self, name)} is not a share of the data: give a number between 0 and 1"
            for name in ("validation_size", "test_size")
            if not 0 < getattr(self, name) < 1
        ]
        if not errors and self.validation_size + self.test_size >= 1:
            errors.append(
                f"validation_size: {self.validation_size} and test_size: {self.test_size} leave nothing to train on: "
                "their sum must be under 1"
            )
        errors += [
            f"{name}: {getattr(self, name)} must be at least 1"
            for name in ("max_train_samples", "max_validation_samples", "max_test_samples", "samples_per_class")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if not self.tensor_cache_gb >= 0:  # true for NaN
            errors.append(f"tensor_cache_gb: {self.tensor_cache_gb} must be at least 0")
        errors += self._check_transform()
        if not 0 <= self.split_seed < 2**32:
            errors.append(f"split_seed: {self.split_seed} must be at least 0 and under 2^32")
        if self.max_train_samples is not None and self.samples_per_class is not None:
            message = "max_train_samples and samples_per_class contradict each other: give one of them"
            errors.append(Advice(message, {"max_train_samples": None}))
        if self.dataset in EMBEDDED and self.data_dir is not None:
            errors.append(
                Advice(
                    f"dataset: {self.dataset} is embedded and reads no folder: leave out data_dir: {self.data_dir}, "
                    "or leave out dataset to read that folder",
                    {"data_dir": None},
                )
            )
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            errors.append(f"classes: {self.classes} must name each class once")
        return errors + self._check_splits()

    def _check_splits(self) -> list[str]:
        keys = ("train_split", "validation_split", "test_split")
        given = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        errors: list[str] = [
            Advice(f"{key}: {name!r} names no split: leave it out", {key: None})
            for key, name in given.items()
            if key != "train_split" and not name.strip()
        ]
        if (self.train_split or "").casefold() == NO_SPLIT:
            errors.append(f"train_split: {NO_SPLIT} leaves nothing to train on: leave it out, or name a split")
        named = [name for name in given.values() if name.casefold() != NO_SPLIT]
        if len(set(named)) < len(named):
            errors.append(f"train_split, validation_split and test_split must differ, not {list(given.values())}")
        return errors

    def _check_transform(self) -> list[str]:
        if self.image_transform is None:
            return []
        if self.data_engine == "tensor":
            message = "image_transform works on single images: set data_engine: stream (tensor works on batches)"
            return [Advice(message, {"data_engine": "stream"})]
        if not isinstance(self.image_transform, dict):
            return [f"image_transform: {self.image_transform!r} is not a mapping such as {{hflip: 0.5}}"]
        return []


@dataclass
class OtherData(DataArguments):
    """Data to evaluate a model on, other than its run's; they need no train split."""

    need_train: ClassVar[bool] = False
