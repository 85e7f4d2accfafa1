"""Situations in which names of classes, or data to evaluate on, are refused, and settings are recommended."""

from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from support import noise_images, train

SMALL = ["--model", "mlp", "--model_args", '{"hidden_sizes": [4]}', "--num_train_epochs", 1, "--report_to", "none"]


def evaluation(folder: Path, data: Path) -> tuple[str, list]:
    """An evaluation of a model of the classes ant, bee and fly on other data."""
    own = noise_images(folder / "own", dict.fromkeys(["ant", "bee", "fly"], 8))
    run = train(folder / "trained", "--data_dir", own, *SMALL).folder
    return "eval", ["--model", run, "--data_dir", data]


def another_spelling(folder: Path) -> list:
    data = noise_images(folder / "data", {"train/Cat": 8, "train/dog": 8, "test/cat": 2, "test/dog": 2})
    return ["--data_dir", data, *SMALL]


def unknown_classes(folder: Path) -> tuple[str, list]:
    return evaluation(folder, noise_images(folder / "new", {"Ant": 2, "bee": 2, "wasp": 2}))


def no_such_split(folder: Path) -> tuple[str, list]:
    script, arguments = evaluation(folder, noise_images(folder / "new", {"ant": 2, "bee": 2}))
    return script, [*arguments, "--split", "validation"]


def no_test_split(folder: Path) -> tuple[str, list]:
    features = Features(image=Image(), label=ClassLabel(names=["ant", "bee"]))
    columns = {"image": [PILImage.new("L", (4, 4), i) for i in range(2)], "label": [0, 1]}
    split = Dataset.from_dict(columns, features)
    DatasetDict(train=split, validation=split).save_to_disk(folder / "new")
    return evaluation(folder, folder / "new")


def unlabelled_test(folder: Path) -> tuple[str, list]:
    return evaluation(folder, noise_images(folder / "new", {"train/ant": 2, "train/bee": 2, "test": 2}))


CASES = {
    "data.sources.splits:check_classes#3": another_spelling,
    "tasks.single_label.matching:_unknown": unknown_classes,
    "data.sources.evaluation:_chosen": unlabelled_test,
    "data.sources.evaluation:_chosen#2": no_such_split,
    "data.sources.evaluation:_chosen#3": no_test_split,
}
