"""Splits recognised by the words of names, chosen among a source's own, and found in columns."""

import pytest

from ftkit.config import DataArguments
from ftkit.data.sources.split_names import choose_splits, split_column, split_of


@pytest.mark.parametrize(
    "split, names",
    [
        ("train", "train Training TRAIN seg_train training_set flowers-train-000000 imagenet1k-train-0000"),
        ("train", "trainA trainSet TrainImages trainval photos/train train_val_list train/0000 val/train-0"),
        ("train", "cifar10_train train2017 ds.train.csv trainset train.1"),
        ("validation", "val valid Validation dev imagenet1k-validation-00 val2017 valImages train/val-0001 VALID"),
        ("test", "test Test testing test_set seg_test PublicTest PrivateTest test-00000-of-00001 t/test"),
        (None, "latest contest trainspotting value developer invalid attest strain greatest testament protest"),
        (None, "validity evaluation extra train_test_split val_test train-val-test 0000 data Devon trainers"),
    ],
)  # fmt: skip
def test_a_split_is_recognised_by_its_word(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    assert split_of("training set") == "train" and split_of("") is None


def chosen(names, **options) -> dict[str, str]:
    return choose_splits({name: name for name in names}, DataArguments(**options), "here")


@pytest.mark.parametrize(
    "names, options, expected",
    [
        (["seg_train", "seg_test"], {}, {"train": "seg_train", "test": "seg_test"}),
        (["animals"], {}, {"train": "animals"}),
        (["train", "test", "extra"], {}, {"train": "train", "test": "test"}),
        (["train", "evaluation"], {"test_split": "evaluation"}, {"train": "train", "test": "evaluation"}),
        (["train", "evaluation"], {"test_split": "none", "validation_split": "NONE"}, {"train": "train"}),
        (["train", "val", "test"], {"test_split": "val"}, {"train": "train", "test": "val"}),
        (["train", "valid"], {"validation_split": "validation"}, {"train": "train", "validation": "valid"}),
        (["Train", "TEST"], {"train_split": "train"}, {"train": "Train", "test": "TEST"}),
        (
            ["data"],
            {"train_split": "train", "validation_split": "validation", "test_split": "test"},
            {"train": "data"},
        ),
        (["train_test"], {}, {"train": "train_test"}),
        (["test"], {"train_split": "test", "test_split": "none"}, {"train": "test"}),
        (["a", "b"], {"train_split": "b"}, {"train": "b"}),
        (["train", "val", "valid"], {"validation_split": "val"}, {"train": "train", "validation": "val"}),
    ],
)
def test_splits_are_chosen(names, options, expected):
    assert chosen(names, **options) == expected


@pytest.mark.parametrize(
    "names, fix",
    [
        (["train", "val", "valid"], {"validation_split": "val"}),
        (["train", "test", "test_hard"], {"test_split": "test"}),
        (["train", "evaluation"], {"test_split": "evaluation"}),
        (["train", "test", "holdout"], {"validation_split": "holdout"}),
        (["test"], {"train_split": "test", "test_split": "none"}),
        (["validation"], {"train_split": "validation", "validation_split": "none"}),
        (["evaluation"], {"train_split": "evaluation"}),
        (["train", "val", "valid", "evaluation"], {"validation_split": "val", "test_split": "evaluation"}),
        (["a", "b"], {"train_split": "a"}),
        (["a", "test"], {"train_split": "a"}),
    ],
)
def test_splits_that_are_not_clear_name_what_to_set(names, fix, refused):
    with refused("here", *fix.values()) as refusal:
        chosen(names)
    assert refusal.value.fix == fix
    chosen(names, **fix)


WORDS = ["train", "Train", "val", "TEST"]


@pytest.mark.parametrize("name", ["split", "Split", "subset", "set", "partition", "data set", "usage", "Data_Split"])
def test_a_column_of_splits_is_found_by_its_name(name):
    expected = {"train": "train", "Train": "train", "val": "val", "TEST": "TEST"}
    assert split_column({"x": ["a"], name: WORDS}, None, "here") == (name, expected)


@pytest.mark.parametrize(
    "column, yes, no", [("is_valid", "validation", "train"), ("is_train", "train", "test"), ("test", "test", "train")]
)
@pytest.mark.parametrize("values", [(True, False), ("1", "0"), ("yes", "no"), (1, 0)])
def test_a_column_of_yes_and_no(column, yes, no, values):
    assert split_column({column: values}, None, "here") == (column, {values[0]: yes, values[1]: no})


@pytest.mark.parametrize(
    "columns, fix",
    [
        ({"kind": ["train", "test"]}, {"split_column": "kind"}),
        ({"split": ["train", "odd"]}, {"split_column": "none"}),
        ({"split": ["eval", "extra"]}, {"split_column": "none"}),
        ({"subset": ["train", "odd"]}, {"split_column": "none"}),
        ({"split": WORDS, "subset": WORDS}, {"split_column": "split"}),
        ({"fold": [0, 1, 2, 3, 4]}, {"split_column": "none"}),
        (
            {"split": ["te", "tr", "va"]},
            {"split_column": "split", "train_split": "tr", "validation_split": "va", "test_split": "te"},
        ),
        (
            {"partition": ["0", "1", "2"]},
            {"split_column": "partition", "train_split": "0", "validation_split": "1", "test_split": "2"},
        ),
    ],
)
def test_a_column_that_only_looks_like_splits_names_what_to_set(columns, fix, refused):
    with refused("here", fix["split_column"]) as refusal:
        split_column(columns, None, "here")
    assert refusal.value.fix == fix
    split_column(columns, fix["split_column"], "here")


@pytest.mark.parametrize("columns", [{"note": ["train", "car"]}, {"kind": ["test"]}, {"set": ["7541", "12"]}, {}])
def test_other_columns_are_no_splits(columns):
    assert split_column(columns, None, "here") is None
