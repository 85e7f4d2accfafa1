"""Evaluating a model on other data than its run's: whole, of any number of classes, with labels by name."""

import csv
import json
import logging
import re
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from support import finetune, load_recipe_script

from ftkit.config import DataArguments
from ftkit.config.arguments.evaluation import EvaluationArguments
from ftkit.config.configuration import Evaluation
from ftkit.data.sources.evaluation import load_evaluation
from ftkit.owners import parse_evaluation
from ftkit.tasks import SingleLabel

NAMES = ["ant", "bee", "fly"]
TASK = SingleLabel(NAMES)


def picture(label: str, seed: int) -> PILImage.Image:
    """A noisy grey image, whose brightness tells the classes of the model apart."""
    level = 40 + 80 * NAMES.index(label) if label in NAMES else 0
    pixels = np.random.default_rng(seed).normal(level, 10, (8, 8))
    return PILImage.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(root, counts: dict[str, int], start: int = 0):
    """Images by folder, `{"test/bee": 3, …}`: the last part is the class."""
    seed = start
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            picture(name.rpartition("/")[2], seed).save(root / name / f"{seed}.png")
            seed += 1
    return root


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A finished run on class folders without splits. Read-only."""
    folder = tmp_path_factory.mktemp("run")
    write(folder / "data", dict.fromkeys(NAMES, 20))
    return finetune(
        folder / "run", "--data_dir", folder / "data", "--model", "mlp", "--model_args", '{"hidden_sizes": [8]}',
        "--num_train_epochs", 30, "--learning_rate", 0.01, "--report_to", "none",
    )  # fmt: skip


@pytest.fixture
def read_to_evaluate(finished_run):
    """`load_evaluation` of a folder or file with more options: the split's name, the labels' names, and the rest."""

    def read_to_evaluate(path, *options, model=finished_run):
        config = parse_evaluation(["--model", str(model), "--data_dir", str(path), *map(str, options)])
        found = load_evaluation(config, TASK)
        assert found.rows.features["label"].names == NAMES
        return found.split, [NAMES[label] for label in found.rows["label"]], found.drawn_from

    return read_to_evaluate


def count(labels: list[str]) -> dict[str, int]:
    return {name: labels.count(name) for name in NAMES if name in labels}


@pytest.mark.parametrize(
    "counts, split, expected",
    [
        ({"ant": 5, "bee": 5, "fly": 5}, "all", {"ant": 5, "bee": 5, "fly": 5}),
        ({"bee": 3}, "all", {"bee": 3}),
        ({"bee": 1}, "all", {"bee": 1}),
        ({"fly": 2, "bee": 1}, "all", {"bee": 1, "fly": 2}),
        ({"test/ant": 2, "test/fly": 3}, "test", {"ant": 2, "fly": 3}),
        ({"test/fly": 3}, "test", {"fly": 3}),
        ({"train/ant": 4, "train/bee": 4, "test/bee": 2}, "test", {"bee": 2}),
        ({"train/ant": 4, "train/bee": 4, "val/ant": 1, "test/bee": 2}, "test", {"bee": 2}),
        ({"val/ant": 2}, "validation", {"ant": 2}),
        ({"train/ant": 2, "train/bee": 1}, "all", {"ant": 2, "bee": 1}),
    ],
)
def test_folders_are_evaluated_whole(tmp_path, read_to_evaluate, counts, split, expected):
    found, labels, drawn_from = read_to_evaluate(write(tmp_path / "new", counts))
    assert (found, count(labels), drawn_from) == (split, expected, {})


def test_only_what_is_not_used_is_accounted_for(tmp_path, finished_run):
    root = write(tmp_path / "new", {"train/ant": 4, "train/bee": 4, "test/bee": 2})
    (root / "test" / "bee" / "photo.HEIF?").write_bytes(b"")
    config = parse_evaluation(["--model", str(finished_run), "--data_dir", str(root)])
    ledger = load_evaluation(config, TASK).ledger
    assert [(row["where"], row["n"]) for row in ledger.not_used] == [("train", 8), ("test/bee", 1)]


def test_a_folder_of_images_is_the_class_that_it_is_called_by(tmp_path, read_to_evaluate, refused):
    root = write(tmp_path, {"bee": 4, "wasps": 2})
    assert read_to_evaluate(root / "bee")[:2] == ("all", ["bee"] * 4)
    with refused("does not know: 'wasps' (2 images)", "labels are matched by name", "'ant', 'bee', 'fly'"):
        read_to_evaluate(root / "wasps")


def test_a_table_is_evaluated_whole(tmp_path, read_to_evaluate):
    root = write(tmp_path / "images", {"bee": 2, "fly": 1})
    with (tmp_path / "images" / "labels.csv").open("w", newline="") as file:
        rows = [(str(path.relative_to(root)), path.parent.name) for path in sorted(root.rglob("*.png"))]
        csv.writer(file).writerows([("file_name", "label"), *rows])
    for place in (root, root / "labels.csv"):
        assert read_to_evaluate(place)[:2] == ("all", ["bee", "bee", "fly"])


def rows_of(labels: list[str], names: list[str] | None = None) -> Dataset:
    features = Features(image=Image(), label=ClassLabel(names=names or sorted(set(labels))))
    return Dataset.from_dict({"image": [picture(name, i) for i, name in enumerate(labels)], "label": labels}, features)


def test_splits_of_a_dataset(tmp_path, read_to_evaluate, refused):
    train, other = rows_of(["ant", "bee"] * 3), rows_of(["fly"], ["fly", "bee"])
    DatasetDict(train=train, test=other).save_to_disk(tmp_path / "both")
    assert read_to_evaluate(tmp_path / "both")[:2] == ("test", ["fly"])
    assert read_to_evaluate(tmp_path / "both", "--split", "train")[1] == ["ant", "bee"] * 3
    assert read_to_evaluate(tmp_path / "both", "--test_split", "train")[:2] == ("train", ["ant", "bee"] * 3)
    DatasetDict(test=other).save_to_disk(tmp_path / "test")
    assert read_to_evaluate(tmp_path / "test")[:2] == ("test", ["fly"])
    other.save_to_disk(tmp_path / "alone")
    assert read_to_evaluate(tmp_path / "alone")[:2] == ("all", ["fly"])
    DatasetDict(train=train, validation=other).save_to_disk(tmp_path / "no test")
    with refused("has no test split, but train and validation", "--split validation"):
        read_to_evaluate(tmp_path / "no test")
    for split in ("test", "validation"):
        with refused(f"has no {split} split", "leave split out to evaluate all its 1 images"):
            read_to_evaluate(tmp_path / "alone", "--split", split)


@pytest.fixture
def unlabelled_test(tmp_path):
    """Data by their form, with three ants and three bees in train, and nothing to compare with in test."""
    train = rows_of(["ant"] * 3 + ["bee"] * 3)
    hidden = Dataset.from_dict({"image": train["image"][:2], "label": [-1, -1]}, train.features)
    for name, test in (("hidden", hidden), ("no column", hidden.remove_columns("label")), ("empty", train.select([]))):
        DatasetDict(train=train, test=test).save_to_disk(tmp_path / name, num_shards={"train": 1, "test": 1})
    write(tmp_path / "folders", {"train/ant": 3, "train/bee": 3, "test": 2})
    write(tmp_path / "archive", {"train/ant": 3, "train/bee": 3})
    (tmp_path / "archive" / "test.zip").write_bytes(b"x")
    names = sorted(path.name for path in (write(tmp_path / "table", {"images": 8}).rglob("*.png")))
    labelled = [f"{name},{label},train" for name, label in zip(names, ["ant"] * 3 + ["bee"] * 3, strict=False)]
    table = "\n".join(["file,label,split", *labelled, *(f"{name},,test" for name in names[6:])])
    (tmp_path / "table" / "all.csv").write_text(table)
    return tmp_path


@pytest.mark.parametrize("name", ["hidden", "no column", "empty", "folders", "archive", "table"])
def test_a_split_without_labels_is_not_replaced(unlabelled_test, read_to_evaluate, refused, name):
    """Nothing is carved for it, and train is evaluated only if the user says so."""
    with refused("test", "--split train") as refusal:
        read_to_evaluate(unlabelled_test / name)
    assert "carve" not in str(refusal.value) and refusal.value.fix == {"split": "train"}
    for options in (["--split", "train"], ["--test_split", "none"], ["--split", "train", "--test_split", "none"]):
        assert read_to_evaluate(unlabelled_test / name, *options)[:2] == ("train", ["ant"] * 3 + ["bee"] * 3)


@pytest.mark.parametrize("unlabelled", [["val"], ["train"], ["train", "val"]])
def test_other_splits_without_labels_are_no_obstacle(tmp_path, read_to_evaluate, refused, unlabelled):
    counts = {"train/ant": 2, "train/bee": 1, "val/bee": 1, "test/ant": 2}
    labelled = {name: n for name, n in counts.items() if name.partition("/")[0] not in unlabelled}
    root = write(tmp_path / "new", labelled | dict.fromkeys(unlabelled, 1))
    assert read_to_evaluate(root)[:2] == ("test", ["ant"] * 2)
    with refused("images outside of class folders", "<class>/", "--split"):
        read_to_evaluate(root, "--split", "train" if "train" in unlabelled else "validation")


def test_a_folder_that_is_called_as_a_split(tmp_path, read_to_evaluate, refused):
    root = write(tmp_path, {"test/ant": 1, "test/bee": 2, "flat/val": 2})
    for options in ([], ["--split", "test"]):
        assert read_to_evaluate(root / "test", *options)[:2] == ("test", ["ant", "bee", "bee"])
    with refused("no train split", "leave split out"):
        read_to_evaluate(root / "test", "--split", "train")
    with refused("val holds images without class folders", "recipes/predict.py"):
        read_to_evaluate(root / "flat" / "val")


def test_the_runs_own_data_that_have_changed(tmp_path, refused):
    root = write(tmp_path / "new", {"train/ant": 4, "train/bee": 4, "test": 2})
    config = Evaluation(DataArguments(data_dir=str(root)), EvaluationArguments(model="m"), own_data=True)
    with refused("images outside of class folders", "the data have changed since the run") as refusal:
        load_evaluation(config, TASK)
    assert "carve" not in str(refusal.value) and not refusal.value.fix


def test_data_without_any_label(tmp_path, read_to_evaluate, refused):
    for counts in ({"test": 2}, {"train": 2, "test": 2}):
        with refused("images outside of class folders", "recipes/predict.py"):
            read_to_evaluate(write(tmp_path / "-".join(counts), counts))


def test_a_lone_test_shard(tmp_path, read_to_evaluate):
    rows_of(["bee", "ant", "bee"]).to_parquet(tmp_path / "flowers-test-00000-of-00001.parquet")
    assert read_to_evaluate(tmp_path)[1] == ["bee", "ant", "bee"]


def test_fewer_images(tmp_path, read_to_evaluate):
    root = write(tmp_path / "new", {"ant": 10, "bee": 10})
    split, labels, drawn_from = read_to_evaluate(root, "--max_test_samples", 6)
    assert (split, len(labels), drawn_from) == ("all", 6, {"all": 20})
    assert read_to_evaluate(root, "--max_test_samples", 6)[1] == labels
    assert read_to_evaluate(root, "--max_test_samples", 6, "--split_seed", 3)[1] != labels
    assert read_to_evaluate(root, "--max_test_samples", 20)[2] == {}


def test_classes_that_the_model_does_not_know(tmp_path, read_to_evaluate, refused):
    root = write(tmp_path / "new", {"ant": 3, "bee": 2, "wasp": 4, "hornet": 1})
    with refused("new", "'hornet' (1 images), 'wasp' (4 images)", "classes: 'ant' 'bee'", "5 of 10 images") as caught:
        read_to_evaluate(root)
    assert caught.value.fix == {"classes": ["ant", "bee"]}
    for given in (["ant", "bee"], ["ant,bee"], ["ant, bee, fly"]):
        assert count(read_to_evaluate(root, "--classes", *given)[1]) == {"ant": 3, "bee": 2}
    assert count(read_to_evaluate(root, "--classes", "bee")[1]) == {"bee": 2}
    with refused("classes", "'wsp'", "did you mean 'wasp'"):
        read_to_evaluate(root, "--classes", "bee", "wsp")


def test_names_that_look_like_the_models(tmp_path, read_to_evaluate, refused, caplog):
    root = write(tmp_path / "new", {"Ant": 3, "bee ": 2, "fly": 1})
    with refused("'Ant' (3 images), 'bee ' (2 images)", "capitals", "spaces at the ends") as caught:
        read_to_evaluate(root)
    assert caught.value.fix == {"merge_similar_labels": True}
    with caplog.at_level(logging.INFO, logger="ftkit"):
        assert count(read_to_evaluate(root, "--merge_similar_labels", "true")[1]) == {"ant": 3, "bee": 2, "fly": 1}
    assert "'Ant' (3), 'ant' differ in capitals" in caplog.text
    write(root, {"wasp": 2})
    with refused("merge_similar_labels: true", "6 of 8 images") as caught:
        read_to_evaluate(root)
    assert caught.value.fix == {"merge_similar_labels": True, "classes": NAMES}
    options = ["--merge_similar_labels", "true", "--classes", *NAMES]
    assert count(read_to_evaluate(root, *options)[1]) == {"ant": 3, "bee": 2, "fly": 1}


def test_the_runs_own_data_keep_their_split(finished_run, read_to_evaluate, tmp_path):
    """Named or not, by another path or not."""
    data = finished_run.parent / "data"
    (tmp_path / "link").symlink_to(data)
    own = [read_to_evaluate(place) for place in (data, data / ".." / "data", tmp_path / "link")]
    assert [(split, len(labels)) for split, labels, _ in own] == [("test", 12)] * 3
    assert len(read_to_evaluate(data, "--split", "train")[1]) == 43
    assert read_to_evaluate(shutil.copytree(data, tmp_path / "copy"))[0] == "all"


def evaluate(finished_run, folder, *options):
    load_recipe_script("eval").main(["--model", str(finished_run), "--output_dir", str(folder), *map(str, options)])
    return json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()


def test_a_report_on_one_class(finished_run, tmp_path, capsys):
    root = write(tmp_path / "new", {"bee": 3}, start=900)
    metrics, page = evaluate(finished_run, tmp_path / "found", "--data_dir", root)
    assert metrics["n"] == 3 and metrics["accuracy"] == 1
    assert [metrics["per_class"][name]["accuracy"] for name in NAMES] == [None, 1, None]
    assert "Evaluated on\nall 3 images, 3 classes" in page and "2 of the 3 classes have no evaluated images" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert "images       all 3 images\n" in capsys.readouterr().out
    assert "| all 3 images |" in (tmp_path / "found" / "report.md").read_text()


def test_images_of_training_are_counted(finished_run, tmp_path, capsys):
    copy = shutil.copytree(finished_run.parent / "data", tmp_path / "copy")
    _, page = evaluate(finished_run, tmp_path / "found", "--data_dir", copy, "--max_test_samples", 50)
    assert "50 of the 60 images, drawn at random" in page
    seen = int(re.search(r"(\d+) of the evaluated images are among those that the model was trained on", page)[1])
    assert 30 <= seen <= 43
    assert f"{seen} of them are among the images that the model was trained on" in capsys.readouterr().out
