"""Class folders, and tables of paths and labels."""

import json

import pytest


def sizes(data) -> dict[str, int]:
    return {split: len(rows) for split, rows in data.items()}


# --- class folders


def test_class_folders_without_splits(picture_folder, load, labels_of, values_of):
    data = load(picture_folder({"cat": 20, "dog/young": 10, "dog/old": 10}))
    assert sizes(data) == {"train": 28, "validation": 4, "test": 8}
    for rows in data.values():
        assert labels_of(rows) == ["cat" if value < 20 else "dog" for value in values_of(rows)]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("training", "valid", "testing"),
        ("Train", "val", "Test"),
        ("train", "dev", "test"),
    ],
)
def test_class_folders_with_splits(picture_folder, load, labels_of, names):
    train, validation, test = names
    data = load(
        picture_folder({f"{train}/a": 3, f"{train}/b": 3, f"{validation}/a": 2, f"{test}/a": 1, f"{test}/b": 4})
    )
    assert sizes(data) == {"train": 6, "validation": 2, "test": 5}
    assert labels_of(data["test"]) == list("abbbb")


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_missing_split_is_carved_out_of_train(picture_folder, load, missing):
    counts = {f"{split}/{name}": 20 for split in ("train", "val", "test") for name in "ab" if split != missing}
    left = sizes(load(picture_folder(counts)))
    assert left["train"] + left["validation" if missing == "val" else "test"] == 40


def test_class_names_keep_their_meaning_and_order(picture_folder, load, labels_of, values_of):
    """`1, 2, 10` in numeric order; a class missing from test does not shift the labels."""
    data = load(picture_folder({f"train/{name}": 3 for name in ("10", "2", "1")} | {"val/2": 2, "test/10": 2}))
    assert {tuple(rows.features["label"].names) for rows in data.values()} == {("1", "2", "10")}
    assert labels_of(data["validation"]) == ["2", "2"]
    assert labels_of(data["test"]) == ["10", "10"]
    by_value = dict(zip(values_of(data["train"]), labels_of(data["train"]), strict=True))
    assert by_value == dict(enumerate(["10"] * 3 + ["2"] * 3 + ["1"] * 3))


def test_other_files_are_ignored(picture_folder, load, picture):
    root = picture_folder({"train/a": 3, "train/b": 3, "val/a": 1, "test/b": 1, "__MACOSX/a": 1, "train/.cache": 2})
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "train" / "a" / "Thumbs.db").write_text("x")
    picture(0).save(root / "train" / "b" / "._0.png")
    (root / "README.md").write_text("x")
    picture(9).save(root / "train" / "b" / "LOUD.PNG")
    assert sizes(load(root)) == {"train": 7, "validation": 1, "test": 1}


def test_hidden_folders_inside_a_class_are_ignored(picture_folder, load):
    root = picture_folder({"train/a": 3, "train/b": 3, "val/a": 1, "test/b": 1, "train/a/.ipynb_checkpoints": 2})
    assert len(load(root)["train"]) == 6


@pytest.mark.parametrize(
    "counts, words",
    [
        ({"a": 5}, ["one class", "'a'", "at least two"]),
        ({"train/a": 5, "test/a": 5}, ["one class", "'a'"]),
        ({"train/a": 3, "train/b": 3, "test/eel": 1}, ["test has classes", "'eel'"]),
        ({"train/a": 3, "train/b": 0, "val/b": 1}, ["train/b holds no image"]),
        ({}, ["empty"]),
        ({"a": 0, "b": 0}, ["no images"]),
        ({".": 4}, ["no images in class folders"]),
        ({"train": 4, "test/a": 2}, ["no images in class folders"]),
    ],
)
def test_folders_that_cannot_be_used(picture_folder, load, refused, counts, words):
    root = picture_folder(counts)
    with refused(root, *words):
        load(root)


def test_a_test_folder_without_labels_is_an_error(picture_folder, load, refused):
    """Otherwise its images would be dropped, and a test split carved out of train instead."""
    root = picture_folder({"train/a": 20, "train/b": 20, "test": 5})
    with refused(root / "test"):
        load(root)


def test_two_folders_for_one_split_are_not_merged_silently(picture_folder, load, refused):
    root = picture_folder({"train/a": 20, "train/b": 20, "val/a": 5, "valid/b": 5})
    with refused("val", "valid"):
        load(root)


def test_a_missing_folder_suggests_its_siblings(picture_folder, load, refused):
    root = picture_folder({"a": 1})
    with refused(root.parent / "pictrues", "does not exist", "pictures"):
        load(root.parent / "pictrues")
    with refused(root / "x" / "y", "does not exist"):
        load(root / "x" / "y")


# --- tables


def write_table(path, rows: list[dict]) -> None:
    """CSV, TSV or JSON lines by the suffix."""
    if path.suffix in (".csv", ".tsv"):
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("\n".join({".csv": ",", ".tsv": "\t"}[path.suffix].join(line) for line in lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def table(picture_folder, tmp_path):
    """Write a table of 40 images in `pictures/x`; `labels` repeat. Returns its path."""
    picture_folder({"x": 40})

    def write(name="data.csv", labels=("cat", "dog"), image="image", label="label", **columns):
        rows = [
            {image: f"pictures/x/{i}.png", label: labels[i % len(labels)]}
            | {key: values[i % len(values)] for key, values in columns.items()}
            for i in range(40)
        ]
        write_table(tmp_path / name, rows)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.ndjson"])
@pytest.mark.parametrize("columns", [("image", "label"), ("file_name", "class"), ("Path", "Category")])
def test_tables_with_the_usual_columns(table, load, labels_of, values_of, monkeypatch, name, columns):
    path = table(name, image=columns[0], label=columns[1])
    monkeypatch.chdir("/")  # paths are relative to the file, not to where we stand
    data = load(path)
    assert sizes(data) == {"train": 28, "validation": 4, "test": 8}
    for rows in data.values():
        assert labels_of(rows) == [("cat", "dog")[value % 2] for value in values_of(rows)]


def test_tables_with_named_columns(table, load, labels_of, values_of):
    path = table(image="where", label="what", label2=("x", "y"), path=["nowhere"])
    data = load(path, image_column="where", label_column="what")
    assert labels_of(data["test"]) == [("cat", "dog")[value % 2] for value in values_of(data["test"])]


@pytest.mark.parametrize("where", ["column", "files"])
def test_tables_with_splits(table, load, values_of, where):
    if where == "column":
        root = table(split=["train", "Train", "val", "TEST"])
    else:
        for name, value in (("train.csv", "train"), ("valid.jsonl", "val"), ("test.tsv", "test")):
            root = table(name, split=[value]).parent
    data = load(root)
    assert sizes(data) == (
        {"train": 20, "validation": 10, "test": 10} if where == "column" else dict.fromkeys(data, 40)
    )
    if where == "column":
        assert values_of(data["test"]) == list(range(3, 40, 4))


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
@pytest.mark.parametrize(
    "labels, names",
    [
        (("01", "1"), ["01", "1"]),
        (("1e3", "1000"), ["1e3", "1000"]),
        (("NA", "null"), ["NA", "null"]),
        (("True", "no"), ["no", "True"]),
        (("10", "9", "2"), ["2", "9", "10"]),
        (("2024-01-01", "nan"), ["2024-01-01", "nan"]),
    ],
)
def test_labels_stay_the_text_of_the_table(table, load, labels_of, values_of, name, labels, names):
    data = load(table(name, labels))
    assert data["train"].features["label"].names == names
    assert labels_of(data["train"]) == [labels[value % len(labels)] for value in values_of(data["train"])]


def test_numbers_in_json_are_labels_too(table, load):
    assert load(table("data.jsonl", (10, 9, 2)))["train"].features["label"].names == ["2", "9", "10"]


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
@pytest.mark.parametrize(
    "options, words",
    [
        ({"label": "kind", "age": ["1"]}, ["label_column is missing", "kind, age"]),
        ({"category": ["x"]}, ["label_column is ambiguous", "label, category"]),
        ({"labels": ("cat", "")}, ["row 2", "20 such rows"]),
        ({"labels": ("cat",)}, ["one class", "'cat'"]),
        ({"split": ["train", "unknown"]}, ["split 'unknown'"]),
        ({"split": ["test", "val"]}, ["--train_split"]),
        ({"split": ["train", "test"]}, ["one class"]),
        ({"labels": ("a", "b", "eel"), "split": ["train", "train", "test"]}, ["test has classes", "'eel'"]),
    ],
)
def test_tables_that_cannot_be_used(table, load, refused, name, options, words):
    path = table(name, **options)
    with refused(path, *words):
        load(path)


@pytest.mark.parametrize(
    "row", [{"label": None}, {"image": None}, {"split": None}, {"label": ["a", "b"]}, {"image": 7}]
)
def test_json_values_that_are_not_text(tmp_path, picture_folder, load, refused, row):
    picture_folder({"x": 1})
    path = tmp_path / "data.jsonl"
    write_table(path, [{"image": "pictures/x/0.png", "label": label, "split": "train"} | row for label in "ab"])
    with refused(path):
        load(path)


def test_missing_images_are_counted_and_named(table, load, refused):
    path = table()
    for i in (7, 9):
        (path.parent / "pictures" / "x" / f"{i}.png").unlink()
    with refused(path, "2 of its images", "7.png", "relative to"):
        load(path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("data.csv", b""),
        ("data.csv", b"image,label\n"),
        ("data.csv", b"image,label\n1,2,3,4\n1,2\n"),
        ("data.csv", b"image,label\n0.png,cat,\n1.png,dog,\n"),
        ("data.csv", b"image,label\n\xff\xfe,a\n"),
        ("data.jsonl", b""),
        ("data.jsonl", b"{not json\n"),
        ("data.jsonl", b"[1, 2]\n"),
        ("data.json", b'[{"image": "a.png", "label": "x"}]'),
        ("data.txt", b"image label\n"),
    ],
)
def test_files_that_are_not_tables(tmp_path, load, refused, name, content):
    (tmp_path / name).write_bytes(content)
    with refused(tmp_path / name):
        load(tmp_path / name)


def test_a_misspelt_column(table, load, refused):
    with refused("label_column", "'lable' is not a column", "did you mean 'label'"):
        load(table(), label_column="lable")
