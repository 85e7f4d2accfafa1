"""Situations in which it is not clear which split or class something is, and settings are recommended."""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

_RUN = ["--model", "mlp", "--image_size", 4, "--num_train_epochs", 1]


def _picture(value: int) -> PILImage.Image:
    return PILImage.fromarray(np.full((4, 4), value % 256, np.uint8))


def _folders(*names: str, files: tuple[str, ...] = (), options: tuple[object, ...] = ()):
    """A case whose data are ten images in each of these folders, and more files."""

    def case(folder):
        for name in names:
            (folder / "data" / name).mkdir(parents=True)
            for i in range(10):
                _picture(20 * i).save(folder / "data" / name / f"{i}.png")
        for file in files:
            (folder / "data" / file).parent.mkdir(exist_ok=True)
            (folder / "data" / file).write_bytes(b"x")
        return [*_RUN, "--data_dir", folder / "data", *options]

    return case


def _saved(
    labels: dict[str, list[int]], column: str = "", values: tuple[object, ...] = (), options: tuple[object, ...] = ()
):
    """A case whose data are splits with these labels, and a column of `values`, in `save_to_disk`."""

    def case(folder):
        features = {"image": Image(), "label": ClassLabel(names=["a", "b"])}
        more = {column: Value("string" if isinstance(values[0], str) else "int64")} if column else {}
        splits = {}
        for split, of_rows in labels.items():
            n = len(of_rows)
            rows = {"image": [_picture(20 * i) for i in range(n)], "label": of_rows}
            rows |= {column: [values[i * len(values) // n] for i in range(n)]} if column else {}
            splits[split] = Dataset.from_dict(rows, features=Features(features | more))
        DatasetDict(splits).save_to_disk(folder / "data", num_shards=dict.fromkeys(splits, 1))
        return [*_RUN, "--data_dir", folder / "data", *options]

    return case


_AB = [0, 1] * 15
CASES = {
    "config.arguments.data:DataArguments._check_splits": _saved({"train": _AB}, options=("--test_split", "")),
    "data.sources.split_names:choose_splits": _folders("test/a", "test/b"),
    "data.sources.split_names:split_column": _saved({"data": _AB}, "kind", ("train", "test")),
    "data.sources.split_names:_not_words": _saved({"data": _AB}, "fold", (0, 1, 2, 3)),
    "data.sources.split_names:_not_words#2": _saved({"data": _AB}, "partition", (0, 1, 2)),
    "data.sources.splits:choose_datasets": _saved({"train": _AB, "test": _AB}, "split", ("train",)),
    "data.sources.splits:canonical": _saved({"train": _AB, "test": []}),
    "data.sources.splits:canonical#3": _saved({"train": _AB, "val": [-1], "test": [-1, -1]}),
    "data.sources.splits:check_classes": _folders("train/a", "train/b", "test/1", "test/2"),
    "data.sources.splits:check_classes#2": _folders("train/a", "train/b", "test/a", "test/eel"),
    "data.sources.folders:_by_lists": _folders("a", "b", options=("--split_column", "part")),
    "data.sources.split_folders:check_overlooked": _folders("train/a", "train/b", files=("test.zip", "val.zip")),
    "data.sources.split_folders:check_bare": _folders("train/a", "train/b", "test"),
    "data.sources.split_folders:split_folders": _folders("trainA", "trainB", "testA", "testB"),
    "data.sources.split_folders:split_folders#2": _folders("train/a", "train/b", "test/a", "test/b", "docs"),
    "data.sources.folders:_splits_in_classes": _folders(
        *(f"{i}/{s}/{c}" for i in "pq" for s in ("train", "test") for c in "ab")
    ),
    "data.sources.folders:_check_nesting": _folders("a", "b", "all/a", "all/b"),
    "data.sources.folders:_check_empty": _folders("a", "b", files=("c/1.HEIC",)),
}


def _without_labels(folder):
    arguments = _saved({"train": _AB, "test": _AB})(folder)
    splits = DatasetDict.load_from_disk(folder / "data")
    splits["test"] = splits["test"].remove_columns("label")
    splits.save_to_disk(folder / "new", num_shards=dict.fromkeys(splits, 1))
    return [*arguments[:-1], folder / "new"]


def _broken_in_each_way(folder):
    """An image of train, all of its class c, and all of test."""
    arguments = _folders("train/a", "train/b", "train/c", "test/a", "test/b")(folder)
    for path in ("train/a/0.png", *(f"{name}/{i}.png" for name in ("train/c", "test/a", "test/b") for i in range(10))):
        (folder / "data" / path).write_bytes(b"no image")
    return arguments


def _list_of_missing_images(folder):
    arguments = _folders("a", "b")(folder)
    (folder / "data" / "test.txt").write_text("a/0.png\nb/0.png\nb/77.png\n")
    return arguments


def _list_against_folders(folder):
    arguments = _folders("train/a", "train/b", "test/a", "test/b")(folder)
    (folder / "data" / "test.txt").write_text("train/a/0.png\ntrain/b/0.png\n")
    return arguments


CASES["data.sources.listings:Listing.by_split"] = _list_of_missing_images
CASES["data.sources.folders:_check_lists"] = _list_against_folders
CASES["data.feeding.engine:_check_broken"] = _broken_in_each_way
CASES["data.sources.splits:canonical#2"] = _without_labels
