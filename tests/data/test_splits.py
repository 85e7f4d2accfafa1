"""Columns by their types, labels by their names, splits carved out of train, and fewer images."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from ftkit.data.sources.load import load_data
from ftkit.owners import parse_config
from ftkit.tasks.single_label.targets import carve

SPLITS = ("train", "validation", "test")
AB = ClassLabel(names=["a", "b"])


@pytest.fixture
def read(saved, load):
    """Save and load three splits: `train` from `labelled`, the others given or like it."""

    def read(train, test=None, validation=None, **options):
        test = train if test is None else test
        return load(saved(train=train, validation=train if validation is None else validation, test=test), **options)

    return read


# --- columns


@pytest.mark.parametrize("image, label", [("image", "label"), ("pic", "kind"), ("label", "image"), ("index", "b")])
def test_columns_are_found_by_their_types(labelled, read, labels_of, values_of, image, label):
    train = labelled([0, 1, 1], image=image, label=label, number=([7, 8, 9], Value("int64")))
    data = read(train)
    for rows in data.values():
        assert sorted(rows.column_names) == ["image", "index", "label", "source"]
        assert (values_of(rows), labels_of(rows), rows["index"][:]) == ([0, 1, 2], ["a", "b", "b"], [0, 1, 2])


@pytest.mark.parametrize("name", ["label", "labels", "class", "target"])
def test_plain_labels_are_found_by_the_usual_names(labelled, read, labels_of, name):
    train = labelled(["x", "y"], Value("string"), label=name, note=(["p", "q"], Value("string")))
    assert labels_of(read(train)["test"]) == ["x", "y"]


COARSE = ([0, 0, 1], ClassLabel(names=["p", "q"]))


def test_named_columns_decide(labelled, read, labels_of, values_of, picture):
    pictures = ([picture(value) for value in (9, 8, 7)], Image())
    train = labelled([0, 1, 1], coarse=COARSE, other=pictures)
    data = read(train, image_column="other", label_column="coarse")
    assert (labels_of(data["test"]), values_of(data["test"])) == (["p", "p", "q"], [9, 8, 7])


@pytest.mark.parametrize(
    "extra, options, words",
    [
        ({"coarse": COARSE}, {}, ["label_column", "2 columns", "label (ClassLabel)", "coarse (ClassLabel)"]),
        ({"mask": ([None] * 3, Image())}, {}, ["image_column", "2 columns", "image (Image)", "mask (Image)"]),
        ({}, {"label_column": "lable"}, ["label_column", "'lable'", "did you mean 'label'"]),
        ({}, {"image_column": "imag"}, ["image_column", "'imag'", "did you mean 'image'"]),
        ({}, {"image_column": "label"}, ["image_column", "'label'"]),
        ({"x": ([0.5, 1, 2], Value("float32"))}, {"label_column": "x"}, ["label_column", "'x'", "float"]),
        ({}, {"label_column": "image"}, ["label_column", "'image'"]),
    ],
)
def test_columns_that_cannot_be_chosen(labelled, read, refused, extra, options, words):
    with refused(*words):
        read(labelled([0, 1, 1], **extra), **options)


def test_a_dataset_without_labels_or_images(labelled, read, refused):
    with refused("label_column", "no column", "image (Image)"):
        read(labelled([0.5, 1.5], Value("float32"), label="score"))
    with refused("image_column", "no column"):
        read(labelled([0, 1]).remove_columns("image"))


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_that_only_train_has(labelled, read, refused, column):
    with refused(repr(column), "test"):
        read(labelled([0, 1]), labelled([0, 1]).rename_column(column, "other"))


# --- splits by name


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_the_usual_names_of_splits(labelled, saved, load, values_of, name):
    data = load(saved(**{"train": labelled([0, 1]), name: labelled([0]), "test": labelled([0, 1, 0])}))
    assert [len(data[split]) for split in SPLITS] == [2, 1, 3]


def test_named_splits(labelled, saved, load, refused):
    root = saved(train=labelled([0, 1]), big=labelled([0, 1] * 2), one=labelled([0]), two=labelled([0, 1, 0]))
    data = load(root, train_split="big", validation_split="one", test_split="two")
    assert [len(data[split]) for split in SPLITS] == [4, 1, 3]
    with refused("test_split", "'three'", "big, one, two"):
        load(root, test_split="three")


# --- labels


@pytest.mark.parametrize(
    "feature, values, names",
    [
        (Value("int64"), [10, 2, 1], ["1", "2", "10"]),
        (Value("uint8"), [0, 200], ["0", "200"]),
        (Value("string"), ["a10", "a2", "a1"], ["a1", "a2", "a10"]),
        (Value("string"), ["01", "1", "1e3"], ["01", "1", "1e3"]),
        (Value("large_string"), ["y", "x"], ["x", "y"]),
        (ClassLabel(names=["z", "y"]), [0, 1], ["z", "y"]),
    ],
)
def test_labels_become_class_labels_in_natural_order(labelled, read, labels_of, feature, values, names):
    data = read(labelled(values * 2, feature), labelled(values[1:], feature))
    assert {tuple(rows.features["label"].names) for rows in data.values()} == {tuple(names)}
    shown = values if not isinstance(feature, ClassLabel) else names
    assert labels_of(data["train"]) == [str(value) for value in shown * 2]
    assert labels_of(data["test"]) == [str(value) for value in shown[1:]]


@pytest.mark.parametrize(
    "train, test",
    [
        (["a", "b", "c"], ["c", "a", "b"]),
        (["b", "a"], ["a", "b", "unused"]),
        (["A", "a"], ["a", "A"]),
        (["1", "01"], ["01", "1"]),
    ],
)
def test_labels_go_by_name_if_splits_number_them_differently(labelled, read, labels_of, train, test):
    n = len(train)
    data = read(labelled(range(n), ClassLabel(names=train)), labelled(range(n), ClassLabel(names=test)))
    assert {tuple(rows.features["label"].names) for rows in data.values()} == {tuple(train)}
    assert labels_of(data["train"]) == train
    assert labels_of(data["test"]) == test[:n]


@pytest.mark.parametrize(
    "train, test, values, words",
    [
        (AB, ClassLabel(names=["b", "a", "eel"]), [0, 2], ["test", "'eel'"]),
        (Value("string"), Value("string"), ["a", "eel"], ["test", "'eel'"]),
        (Value("int64"), Value("int64"), [0, 7], ["test", "'7'"]),
        (AB, Value("string"), ["a", "eel"], ["test", "eel"]),
        (AB, Value("int64"), [0, 1], ["test"]),
        (AB, AB, [-1, -1], ["test", "without a label"]),
        (AB, AB, [0, -1], ["test", "without a label"]),
        (AB, AB, [0, None], ["test", "without a label"]),
        (AB, ClassLabel(names=["b", "a"]), [-1, -1], ["test", "without a label"]),
        (Value("int64"), Value("int64"), [-1, -1], ["test", "-1"]),
        (Value("string"), Value("string"), [None, "a"], ["test"]),
        (AB, AB, [], ["test"]),
        (Value("string"), Value("string"), [], ["test"]),
    ],
)
def test_labels_that_train_lacks(labelled, read, refused, train, test, values, words):
    known = {"int64": [0, 1], "string": ["a", "b"]}.get(getattr(train, "dtype", ""), [0, 1])
    with refused(*words):
        read(labelled(known if train is not AB else [0, 1], train), labelled(values, test))


def test_train_without_labels(labelled, read, refused):
    with refused("train"):
        read(labelled([0, 1, -1]), labelled([0, 1]))
    with refused("train", "one class"):
        read(labelled([0, 0]), labelled([0]))


# --- splits carved out of train


def rows_of(data) -> dict[str, list[int]]:
    return {split: rows["index"][:] for split, rows in data.items()}


def test_carved_splits_are_stratified_disjoint_and_complete(labelled, load, saved):
    labels = [0] * 60 + [1] * 30 + [2] * 10
    train = labelled(labels, ClassLabel(names=["a", "b", "c"]))
    data = load(saved(train=train), validation_size=0.25, test_size=0.2)
    assert {split: np.bincount(rows["label"][:]).tolist() for split, rows in data.items()} == {
        "train": [36, 18, 6],
        "validation": [12, 6, 2],
        "test": [12, 6, 2],
    }
    rows = rows_of(data)
    assert sorted(row for split in rows.values() for row in split) == list(range(100))
    assert all(values == sorted(values) for values in rows.values())


def test_splits_depend_only_on_the_split_seed(tmp_path):
    def rows(*arguments):
        config = parse_config(["--dataset", "digits", "--output_dir", str(tmp_path), *arguments])
        return rows_of(load_data(config.data))

    first = rows("--seed", "1", "--max_train_samples", "50")
    assert rows("--seed", "2", "--data_seed", "3", "--max_train_samples", "50") == first
    other = rows("--split_seed", "1", "--max_train_samples", "50")
    assert all(other[split] != first[split] for split in SPLITS)


def test_an_existing_test_split_stays_complete(labelled, saved, load, values_of):
    data = load(saved(train=labelled([0, 1] * 20), test=labelled([0, 1] * 5)))
    assert values_of(data["test"]) == list(range(10))
    assert [len(data[split]) for split in SPLITS] == [36, 4, 10]


@pytest.mark.parametrize(
    "labels, options, sizes",
    [
        ([0, 1] * 3, {}, {"train": [2, 1], "validation": [0, 1], "test": [1, 1]}),
        ([0] * 50 + [1], {}, {"train": [35, 1], "validation": [4, 0], "test": [11, 0]}),
        ([0] * 50 + [1] * 2, {}, {"train": [34, 2], "validation": [5, 0], "test": [11, 0]}),
        ([0] * 100 + [1] * 2, {"test_size": 0.9}, {"train": [8, 1], "validation": [1, 0], "test": [91, 1]}),
        ([0, 1] * 4, {"test_size": 0.05}, {"train": [3, 3], "validation": [1, 0], "test": [0, 1]}),
    ],
)
def test_small_classes_are_carved_by_largest_remainder(labelled, saved, load, labels, options, sizes):
    data = load(saved(train=labelled(labels)), **options)
    found = {split: np.bincount(rows["label"][:], minlength=2).tolist() for split, rows in data.items()}
    assert {split: sum(counts) for split, counts in found.items()} == {s: sum(counts) for s, counts in sizes.items()}
    assert min(found["train"]) >= 1
    assert sorted(row for rows in rows_of(data).values() for row in rows) == list(range(len(labels)))
    assert rows_of(load(saved(train=labelled(labels)), **options)) == rows_of(data)


def test_many_small_classes_are_carved():
    labels = np.repeat(np.arange(5000), 10)
    train = Dataset.from_dict({"label": labels}, features=Features(label=ClassLabel(num_classes=5000)))
    kept, test, single = carve(train, "test", 0.2, seed=0)
    rest, validation, _ = carve(train.select(kept), "validation", 0.1, seed=0)
    assert (len(test), len(validation), len(rest), single) == (10000, 4000, 36000, [])
    assert np.bincount(labels[test]).tolist() == [2] * 5000
    assert set(np.bincount(labels[kept][validation], minlength=5000)) == {0, 1}
    assert not np.array_equal(validation, carve(train.select(kept), "validation", 0.1, seed=1)[1])


def test_the_only_image_of_a_class_stays_in_train_and_is_named(labelled, saved, load, labels_of, caplog):
    caplog.set_level("INFO")
    data = load(saved(train=labelled([0] * 50 + [1])))
    assert labels_of(data["train"]).count("b") == 1
    assert "the only image of b stays in train" in caplog.text


@pytest.mark.parametrize("labels, options", [([0, 1], {}), ([0, 1] * 4, {"test_size": 0.9, "validation_size": 0.05})])
def test_nothing_to_carve(labelled, saved, load, refused, labels, options):
    with refused("validation" if options else "test", "one image"):
        load(saved(train=labelled(labels)), **options)


def test_a_split_of_hidden_labels_is_carved_instead(labelled, saved, load, refused):
    root = saved(train=labelled([0, 1] * 20), validation=labelled([0, 1]), test=labelled([-1] * 30))
    with refused("test has rows without a label", "--test_split none") as refusal:
        load(root)
    data = load(root, **refusal.value.fix)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 32, "validation": 2, "test": 8}
    data = load(root, test_split="none", validation_split="none")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 28, "validation": 4, "test": 8}


def test_hidden_labels_of_both_splits_are_one_error(labelled, saved, load, refused):
    root = saved(train=labelled([0, 1] * 20), val=labelled([-1]), test=labelled([None, 1]))
    with refused("validation and test have rows without a label") as refusal:
        load(root)
    assert refusal.value.fix == {"validation_split": "none", "test_split": "none"}


@pytest.mark.parametrize(
    "column, values", [("split", ["train", "val", "TEST"]), ("Data Set", ["train", "val", "test"])]
)
def test_a_column_divides_the_only_split(labelled, saved, load, values_of, column, values):
    train = labelled([0, 1] * 15, **{column: ([values[i // 10] for i in range(30)], Value("string"))})
    data = load(saved(data=train))
    assert [values_of(data[split]) for split in SPLITS] == [list(range(i, i + 10)) for i in (0, 10, 20)]
    assert len(load(saved(data=train), split_column="none")["train"]) == 21


def test_a_column_of_class_labels_or_of_yes_and_no_divides(labelled, saved, load):
    flags = labelled([0, 1] * 15, is_valid=([i % 3 == 0 for i in range(30)], Value("bool")))
    named = labelled([0, 1] * 15, part=([i // 15 for i in range(30)], ClassLabel(names=["train", "test"])))
    assert len(load(saved(train=flags))["validation"]) == 10
    assert len(load(saved(data=named), split_column="part")["test"]) == 15


def test_a_column_of_another_name_is_not_ignored(labelled, saved, load, refused):
    root = saved(data=labelled([0, 1] * 15, kind=(["train"] * 20 + ["test"] * 10, Value("string"))))
    with refused("kind", "split_column") as refusal:
        load(root)
    assert len(load(root, **refusal.value.fix)["test"]) == 10


def test_files_and_a_column_that_contradict_each_other(labelled, saved, load, refused):
    rows = {"split": (["train"] * 10, Value("string"))}
    root = saved(train=labelled([0, 1] * 5, **rows), test=labelled([0, 1] * 5, **rows))
    with refused("test", "train by their column") as refusal:
        load(root)
    assert len(load(root, **refusal.value.fix)["test"]) == 10


# --- fewer images


def test_fewer_images_of_train(load):
    whole = rows_of(load(dataset="digits"))
    few = load(dataset="digits", samples_per_class=3)
    assert np.bincount(few["train"]["label"][:]).tolist() == [3] * 10
    some = load(dataset="digits", max_train_samples=100)
    assert len(some["train"]) == 100
    for data in map(rows_of, (few, some)):
        assert set(data["train"]) < set(whole["train"])
        assert (data["validation"], data["test"]) == (whole["validation"], whole["test"])
    assert rows_of(load(dataset="digits", max_train_samples=10**6)) == whole


def test_more_samples_per_class_than_there_are(labelled, read, refused):
    with refused("samples_per_class: 3", "'b' (2)"):
        read(labelled([0, 0, 0, 1, 1]), samples_per_class=3)


def test_a_subset_of_the_classes(load, labels_of):
    from sklearn.datasets import load_digits

    data, digits = load(dataset="digits", classes=["7", "3"]), load_digits()
    for rows in data.values():
        assert rows.features["label"].names == ["3", "7"]  # in the data's order
        assert labels_of(rows) == [str(label) for label in digits.target[rows["index"][:]]]
        shown = np.stack([np.asarray(image) for image in rows["image"]])
        assert np.array_equal(shown, np.rint(digits.images[rows["index"][:]] * (255 / 16)))
    assert sum(map(len, data.values())) == np.isin(digits.target, (3, 7)).sum()


def test_unknown_classes(labelled, read, refused):
    with refused("classes", "'cat'", "a, b"):
        read(labelled([0, 1]), classes=["a", "cat"])
    with refused("classes", "test has no image"):
        read(
            labelled([0, 1, 2], ClassLabel(names=["a", "b", "c"])),
            labelled([2], ClassLabel(names=["a", "b", "c"])),
            classes=["a", "b"],
        )


def test_the_features_are_the_same_in_every_split(load):
    label = ClassLabel(names=[str(i) for i in range(10)])
    expected = Features(image=Image(), label=label, index=Value("int64"), source=Value("string"))
    for rows in load(dataset="digits", samples_per_class=1).values():
        assert dict(rows.features) == dict(expected)
