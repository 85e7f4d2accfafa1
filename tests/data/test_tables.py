"""Tables in their dialects and shapes, the images that they name, and the columns that are chosen."""

import json

import pandas as pd
import pytest

NAMES = [f"{i}.png" for i in range(30)]
LABELS = ["cat", "dog", "eel"] * 10
ROWS = [{"file_name": name, "label": label} for name, label in zip(NAMES, LABELS, strict=True)]
FRAME = pd.DataFrame(ROWS)
FRACTIONS = [i / 7 for i in range(30)]


@pytest.fixture
def thirty(picture_folder):
    """A folder with images whose grey value is their number, and whose label follows from it."""
    return picture_folder({".": 30})


@pytest.fixture
def assert_read(labels_of, values_of):
    """Assert that splits hold all images, or those given, each with its label."""

    def check(data, values=range(30), names=("cat", "dog", "eel")):
        pairs = {v: label for rows in data.values() for v, label in zip(values_of(rows), labels_of(rows), strict=True)}
        assert pairs == {value: names[value % len(names)] for value in values}

    return check


def csv(**options) -> bytes:
    """`FRAME` as pandas writes it with these options."""
    encoding = options.pop("encoding", "utf-8")
    return FRAME.to_csv(index=options.pop("index", False), **options).encode(encoding)


def by_label(rows) -> dict:
    return {label: [row["file_name"] for row in rows if row["label"] == label] for label in ("cat", "dog", "eel")}


COCO = {
    "info": {"year": 2024},
    "images": [{"id": 100 + i, "file_name": name, "width": 6} for i, name in enumerate(NAMES)],
    "annotations": [{"id": i, "image_id": 100 + i, "category_id": i % 3 + 1} for i in range(30)],
    "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "eel"), 1)],
}
DIALECTS = {
    "semicolons.csv": csv(sep=";"),
    "tabs.csv": csv(sep="\t"),
    "bars.csv": csv(sep="|"),
    "quoted.csv": csv(quoting=1),
    "blanks.csv": csv().replace(b",", b", "),
    "windows.csv": csv(lineterminator="\r\n"),
    "mark.csv": csv(encoding="utf-8-sig"),
    "utf-16.csv": csv(encoding="utf-16"),
    "an index.csv": csv(index=True),
    "no header.csv": csv(header=False),
    "no header, no suffixes.csv": csv(header=False).replace(b".png", b""),
    "no suffixes.csv": csv().replace(b".png", b""),
    "backslashes.csv": csv().replace(b"\n", b"\n.\\")[:-2],
    "other folders.csv": csv().replace(b"\n", b"\ndata/train/pictures/")[: -len("data/train/pictures/")],
    "a drive.csv": csv().replace(b"\n", b"\nC:\\old\\pictures\\")[: -len("C:\\old\\pictures\\")],
    "capitals.csv": csv().replace(b".png", b".PNG"),
    "a list.txt": csv(header=False, sep=" "),
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "pairs.json": json.dumps([[*row.values()] for row in ROWS]).encode(),
    "lines.json": "\n".join(map(json.dumps, ROWS)).encode(),
    "array.jsonl": json.dumps(ROWS).encode(),
    "labels.json": json.dumps({row["file_name"]: row["label"] for row in ROWS}).encode(),
    "files.json": json.dumps(by_label(ROWS)).encode(),
    "objects.json": json.dumps({row["file_name"]: {"label": row["label"]} for row in ROWS}).encode(),
    "columns.json": json.dumps(FRAME.to_dict("list")).encode(),
    "of pandas.json": FRAME.to_json().encode(),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "coco.json": json.dumps(COCO).encode(),
    "boxes.jsonl": "\n".join(json.dumps({**row, "objects": {"bbox": [1, 2]}}) for row in ROWS).encode(),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_of_all_kinds(thirty, load, assert_read, name):
    (thirty / name).write_bytes(DIALECTS[name])
    assert_read(load(thirty / name))


@pytest.mark.parametrize(
    "content",
    [
        {"train": ROWS[:20], "test": ROWS[20:]},
        {"train": {row["file_name"]: row["label"] for row in ROWS[:20]}, "test": dict(r.values() for r in ROWS[20:])},
        {"train": by_label(ROWS[:20]), "test": by_label(ROWS[20:])},
    ],
)
def test_json_by_split(thirty, load, assert_read, content):
    (thirty / "all.json").write_text(json.dumps(content))
    data = load(thirty / "all.json")
    assert_read(data)
    assert len(data["test"]) == 10


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("latin.csv", csv().replace(b"cat", "c\xe4t".encode("latin-1")), ["byte", "UTF-8", "iconv"]),
        ("utf-16 without a mark.csv", csv(encoding="utf-16-le"), ["zero bytes", "UTF-8"]),
        ("texts.json", b'["cat", "dog"]', ["no object for each image"]),
        ("cut.json", json.dumps(ROWS)[:-3].encode(), ["cannot be read as json"]),
        ("pixels.csv", b"label,pixel0,pixel1\n0,77,99\n1,255,99\n0,99,88\n1,66,77\n", ["pixels in a text file"]),
    ],
)
def test_tables_that_say_what_to_do(thirty, load, refused, name, content, words):
    (thirty / name).write_bytes(content)
    with refused(thirty / name, *words):
        load(thirty / name)


# --- images


@pytest.fixture
def write(tmp_path):
    """Write columns as a CSV file in `pictures`, and return its path."""

    def write(name: str = "table.csv", /, **columns):
        pd.DataFrame(columns).to_csv(tmp_path / "pictures" / name, index=False)
        return tmp_path / "pictures" / name

    return write


def test_images_in_folders_of_splits(picture_folder, load, values_of, write):
    """Competitions: ids without suffix and folder, the same in train and test, and a table of each."""
    picture_folder({"train_images": 30, "test_images": 30})
    for split in ("train", "test"):
        root = write(f"{split}.csv", id=[str(i) for i in range(30)], label=LABELS).parent
    data = load(root)
    assert sorted(values_of(data["test"])) == list(range(30, 60))


def test_splits_named_by_the_images_folders(picture_folder, load, values_of, write):
    picture_folder({"train": 20, "test": 10})
    paths = [*(f"train/{i}.png" for i in range(20)), *(f"test/{i}.png" for i in range(10))]
    assert sorted(values_of(load(write(path=paths, label=LABELS))["test"])) == list(range(20, 30))


def test_an_image_that_may_be_one_of_two_is_refused(picture_folder, load, refused, write):
    picture_folder({"a": 30, "b": 30})
    with refused("'0.png'", "a/0.png", "b/0.png", "30 such rows"):
        load(write(path=NAMES, label=LABELS))
    with refused("30 of its images do not exist", "other/0.png"):
        load(write(path=[f"other/{name}" for name in NAMES], label=LABELS))


def test_the_folder_of_the_images_can_be_named(thirty, load, refused, assert_read, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_bytes(csv())
    with refused("30 of its images", "--image_dir"):
        load(tmp_path / "lists")
    for place in (tmp_path / "lists", tmp_path / "lists/list.csv"):
        assert_read(load(place, image_dir=str(thirty)))
    with refused("image_dir", thirty / "none", "not a folder"):
        load(thirty, image_dir=str(thirty / "none"))


def test_missing_images_are_skipped_and_counted_if_asked_for(thirty, load, refused, assert_read, write, caplog):
    path = write(path=[*NAMES, "gone.png"], label=[*LABELS, "cat"])
    with refused("1 of its images", "gone.png", "--on_bad_image skip") as refusal:
        load(path)
    caplog.set_level("INFO", "ftkit")
    assert_read(load(path, **refusal.value.fix))
    assert "1 row: their images do not exist" in caplog.text


def test_an_image_listed_twice(thirty, load, refused, assert_read, write, caplog):
    caplog.set_level("INFO", "ftkit")
    assert_read(load(write(path=[*NAMES, "3.png", "3.png"], label=[*LABELS, "cat", "cat"])))
    assert "2 rows: they repeat" in caplog.text
    with refused("3.png", "'cat'", "'dog'", "1 such"):
        load(write(path=[*NAMES, "3.png"], label=[*LABELS, "dog"]))


# --- columns


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"Image Name": NAMES, "classId": [i % 3 for i in range(30)], "class_name": LABELS}, ("cat", "dog", "eel")),
        ({"image_file_name": NAMES, "label": LABELS}, ("cat", "dog", "eel")),
        ({"id": range(100, 130), "filepaths": NAMES, "labels": LABELS}, ("cat", "dog", "eel")),
        ({"image": NAMES, "label": [float(i % 3) for i in range(30)]}, ("0", "1", "2")),
        ({"image": NAMES, "target": [i % 3 == 1 for i in range(30)]}, ("False", "True", "False")),
        ({"key": NAMES, "breed": LABELS}, ("cat", "dog", "eel")),
        ({"key": [f"{i}.0" for i in range(30)], "breed": LABELS}, ("cat", "dog", "eel")),
        ({"path": NAMES, "species_id": [i % 3 for i in range(30)], "species": LABELS}, ("cat", "dog", "eel")),
    ],
)
def test_columns_are_told_by_name_and_content(thirty, load, assert_read, write, columns, expected):
    assert_read(load(write(**columns)), names=expected)


@pytest.mark.parametrize(
    "columns, words, fix",
    [
        ({"key": NAMES, "breed": LABELS, "age": [i // 3 for i in range(30)]}, ["'breed'"], {"label_column": "breed"}),
        ({"image": NAMES, "breed": LABELS, "age": FRACTIONS}, ["'breed'"], {"label_column": "breed"}),
        ({"image": NAMES, "label": FRACTIONS, "kind": LABELS}, ["regression"], {"label_column": "kind"}),
        ({"image": NAMES, "cat": [1, 0, 0] * 10, "dog": [0, 1, 1] * 10}, ["one-hot", "cat, dog", "idxmax"], {}),
        ({"image": NAMES, "cat": [1, 0, 0] * 10, "dog": [1, 1, 1] * 10}, ["several classes", "cat, dog"], {}),
        ({"image": NAMES, "note": [str(i) for i in range(30)]}, ["no column holds classes"], {}),
    ],
)  # fmt: skip
def test_columns_that_are_not_clear(thirty, load, refused, write, columns, words, fix):
    with refused(*words) as refusal:
        load(write(**columns))
    assert fix.items() <= refusal.value.fix.items() and bool(fix) == bool(refusal.value.fix)


# --- which of a folder's files is the data


def test_class_folders_outrank_other_files(picture_folder, load, write, caplog):
    root = picture_folder({f"{split}/{name}": 20 for split in ("train", "test") for name in ("1", "2")})
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    write("captions.csv", file_name=paths, text=[f"number {i}" for i in range(80)])
    write("classes.csv", **{"class": ["1", "2"], "name": ["cat", "dog"]})
    write("same.csv", filepaths=paths, labels=[p.split("/")[1] for p in paths], set=[p.split("/")[0] for p in paths])
    write("submission.csv", path=paths, label=["cat", "dog"] * 40)
    write("predictions.csv", path=["a.png", "b.png"], label=["cat", "dog"])
    (root / "names.json").write_text('{"1": "cat", "2": "dog"}')
    pd.DataFrame({"file": ["a", "b"], "x": [0.1, 0.2]}).to_parquet(root / "features.parquet")
    caplog.set_level("INFO", "ftkit")
    data = load(root)
    assert (data["train"].features["label"].names, len(data["test"])) == (["1", "2"], 40)
    unused = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert len(unused) == 7 or any("more in" in line for line in unused)


@pytest.mark.parametrize("column", ["label", "species"])
@pytest.mark.parametrize("name", ["table.csv", "deep/table.csv"])
@pytest.mark.parametrize("path", ["{}/{}.png", "old/{}/{}.dcm"])
def test_a_table_that_disagrees_with_class_folders(picture_folder, load, refused, write, column, name, path):
    root = picture_folder({"a": 20, "b": 20} | dict.fromkeys([name.rpartition("/")[0]], 0))
    columns = {"path": [path.format(a, i) for a in "ab" for i in range(20)], column: ["day", "night"] * 20}
    write(name, **columns, number=range(40))
    with refused("class folders", name, "other labels", "--label_column .") as refusal:
        load(root)
    for options, names in ((refusal.value.fix, ["day", "night"]), ({"label_column": "."}, ["a", "b"])):
        data = load(root, **options)
        assert (sum(map(len, data.values())), data["test"].features["label"].names) == (40, names)


def test_an_image_of_a_table_that_lies_in_two_folders(picture_folder, load, refused, write):
    root = picture_folder({"photos": 20, "thumbs": 20})
    write(id=range(20), label=["cat", "dog"] * 10)
    with refused("photos/0.png", "thumbs/0.png", "--image_dir") as refusal:
        load(root)
    assert sum(map(len, load(root, **refusal.value.fix).values())) == 20


def test_lists_of_splits_beside_class_folders(picture_folder, load, values_of, labels_of):
    """Labels are the folders' names where lists have none."""
    root = picture_folder({"a": 20, "b": 20})
    paths = [f"{name}/{i}" for name in "ab" for i in range(20)]
    (root / "train.txt").write_text("\n".join(paths[::2]))
    (root / "test.txt").write_text("\n".join(paths[1::2]))
    test = load(root)["test"]
    assert (sorted(values_of(test)), set(labels_of(test))) == (list(range(1, 40, 2)), {"a", "b"})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_metadata_of_each_split(picture_folder, load, values_of, suffix):
    root = picture_folder({"train": 30, "validation/deep": 30, "test": 30})
    for folder in ("train", "validation/deep", "test"):
        path = root / folder / f"metadata{suffix}"
        if suffix == ".csv":
            FRAME.to_csv(path, index=False)
        elif suffix == ".jsonl":
            FRAME.to_json(path, orient="records", lines=True)
        else:
            FRAME.to_parquet(path)
    data = load(root)
    assert [sorted(values_of(rows)) for rows in data.values()] == [[*range(n, n + 30)] for n in (0, 30, 60)]


def test_a_competition(picture_folder, load, refused, write, caplog):
    root = picture_folder({"train": 30, "test": 6})
    write("train.csv", id=range(30), label=LABELS)
    write("sample_submission.csv", id=range(6), label=["cat"] * 6)
    caplog.set_level("INFO", "ftkit")
    assert sum(map(len, load(root).values())) == 30
    assert "sample_submission.csv" in caplog.text and "test: 6 files (.png)" in caplog.text
    write("test.csv", id=range(6))
    with refused("test.csv", "--test_split none") as refusal:
        load(root)
    assert sum(map(len, load(root, **refusal.value.fix).values())) == 30


def test_tiny_imagenet(picture_folder, load, labels_of):
    root = picture_folder({"train/n01/images": 20, "train/n02/images": 20, "val/images": 6})
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"{i}.png\tn0{i % 2 + 1}\t0\t0\t62\t62\n" for i in range(6))
    )
    (root / "words.txt").write_text("n01\tcat\nn02\tdog\n")
    assert sorted(labels_of(load(root)["validation"])) == ["n01"] * 3 + ["n02"] * 3


def test_class_folders_of_train_and_a_table_of_test(picture_folder, load, refused, write, labels_of):
    """The German traffic signs: a table of each split, and one of the classes' signs."""
    root = picture_folder({"Train/0": 20, "Train/1": 20, "Test": 6, "Meta": 2})
    paths = [f"Train/{label}/{i}.png" for label in (0, 1) for i in range(20)]
    write("Train.csv", ClassId=[path[6] for path in paths], Path=paths)
    write("Test.csv", ClassId=[0, 1] * 3, Path=[f"Test/{i}.png" for i in range(6)])
    write("Meta.csv", ClassId=[0, 1], Path=["Meta/0.png", "Meta/1.png"])
    with refused("Meta", "--train_split") as refusal:
        load(root)
    data = load(root, **refusal.value.fix)
    assert (labels_of(data["test"]), len(data["train"])) == (["0", "1"] * 3, 36)


def test_classes_in_the_names_of_images(picture_folder, load, refused):
    root = picture_folder({"train": 6})
    for i in range(6):
        (root / "train" / f"{i}.png").rename(root / "train" / f"{'cat' if i % 2 else 'dog'}.{i}.png")
    with refused("cat, dog", "mkdir"):
        load(root)


def test_rows_without_a_split(thirty, load, refused):
    rows = [{**row, "split": ["train", "test", None][i % 3]} for i, row in enumerate(ROWS)]
    (thirty / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with refused("row 3", "'split'", "10 such rows", "--split_column none"):
        load(thirty / "all.jsonl")


def test_a_folder_around_the_data_is_looked_through(picture_folder, load, assert_read, tmp_path):
    picture_folder({"data/pictures": 30})
    (tmp_path / "pictures" / "data" / "labels.csv").write_bytes(csv())
    (tmp_path / "pictures" / "data.zip").write_bytes(b"x")
    assert_read(load(tmp_path / "pictures"))


def test_a_spreadsheet_is_named(picture_folder, load, caplog):
    root = picture_folder({"a": 20, "b": 20})
    (root / "labels.xlsx").write_bytes(b"x")
    caplog.set_level("INFO", "ftkit")
    load(root)
    assert "labels.xlsx" in caplog.text and "save it as CSV" in caplog.text


# --- odd tables


def test_an_id_does_not_outrank_a_column_of_images_that_are_missing(thirty, load, refused, write):
    write(id=[str(i) for i in reversed(range(30))], image=[f"/data/upload/{i}-x.png" for i in range(30)], label=LABELS)
    with refused("image_column is ambiguous", "'id'", "image") as refusal:
        load(thirty)
    assert sum(map(len, load(thirty, **refusal.value.fix).values())) == 30


def test_a_column_that_names_the_folder_tells_images_of_one_name_apart(
    picture_folder, load, labels_of, values_of, write
):
    root = picture_folder({"A": 10, "B": 10})
    write(folder=["A"] * 10 + ["B"] * 10, file=[*NAMES[:10], *NAMES[:10]], label=["cat", "dog"] * 10)
    data = load(root, label_column="label")
    pairs = {v: name for rows in data.values() for v, name in zip(values_of(rows), labels_of(rows), strict=True)}
    assert pairs == {i: ["cat", "dog"][i % 2] for i in range(20)}


@pytest.mark.parametrize(
    "text, names",
    [
        ("".join(f"{i:02} {'Cessna 172' if i % 2 else 'Yak-42'}\n" for i in range(30)), ["Cessna 172", "Yak-42"]),
        ("".join(f"{i}.png {'red car' if i % 2 else 'bus'}\n" for i in range(30)), ["bus", "red car"]),
        ("".join(f"{i}.png {'red car' if i % 2 else 'old bus'}\n" for i in range(30)), ["old bus", "red car"]),
    ],
)
def test_classes_with_blanks_in_a_text_file(thirty, load, text, names):
    (thirty / "images.txt").write_text(text)
    assert load(thirty / "images.txt")["train"].features["label"].names == names


def test_files_with_blanks_in_a_text_file(thirty, load):
    for i in range(30):
        (thirty / f"{i}.png").rename(thirty / f"my photo {i}.png")
    (thirty / "images.txt").write_text("".join(f"my photo {i}.png {i % 3}\n" for i in range(30)))
    assert load(thirty / "images.txt")["train"].features["label"].names == ["0", "1", "2"]


def test_numbered_splits_in_a_file_of_that_name(thirty, load, refused):
    (thirty / "list_eval_partition.txt").write_text("".join(f"{i}.png {i // 10}\n" for i in range(30)))
    (thirty / "labels.csv").write_bytes(csv())
    with refused("split column 'split'", "--train_split 0") as refusal:
        load(thirty)
    assert {split: len(rows) for split, rows in load(thirty, **refusal.value.fix).items()} == {
        "train": 10, "validation": 10, "test": 10
    }  # fmt: skip


@pytest.mark.parametrize("rest", [b",\n,\n", b"\n\n"])
def test_what_spreadsheets_write(thirty, load, assert_read, rest):
    (thirty / "sheet.csv").write_bytes(csv() + rest)
    assert_read(load(thirty / "sheet.csv"))
    (thirty / "sheet.csv").write_bytes(b"sep=;\r\n" + csv(sep=";"))
    assert_read(load(thirty / "sheet.csv"))


def test_a_one_hot_table_outranks_what_another_table_may_recommend(thirty, load, refused, write):
    write("truth.csv", image=NAMES, cat=[1, 0, 0] * 10, dog=[0, 1, 1] * 10)
    write("people.csv", image=NAMES, sex=["f", "m"] * 15, age=FRACTIONS)
    with refused("truth.csv", "one-hot") as refusal:
        load(thirty)
    assert not refusal.value.fix


def test_two_columns_of_one_name(thirty, load, refused):
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{'cd'[i // 15]}\n" for i in range(30))
    (thirty / "table.csv").write_text("image,label,label\n" + rows)
    with refused("label_column is ambiguous", "'label.1'"):
        load(thirty)
