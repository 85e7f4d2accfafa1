"""recipes/predict.py as users run it: its inputs, its output, and that it sees the same pixels as an evaluation."""

import csv
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from support import REPO, load_recipe_script

from ftkit.config import DataArguments, ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.data.sources.load import load_data
from ftkit.evaluation.predictions import read_predictions
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

HOSTILE = ["a, b", 'the "c"', "two\nlines", "carriage\rreturn", "🐼🎋 熊猫", "\x1b[31mred"]
main = load_recipe_script("predict").main


@pytest.fixture
def predict(capsys):
    """Predict with these arguments, and return the exit code, standard output and standard error."""

    def run(*words):
        capsys.readouterr()
        code = main([*map(str, words)])
        return code, *capsys.readouterr()

    return run


def draw(path, number=0, size=(9, 8), mode="RGB"):
    """An image of noise, which depends on `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return str(path)


def files_of(lines):
    return [json.loads(line)["file"] for line in lines.splitlines()]


def probabilities_of(lines, names):
    """(N, C), by class name, from JSON lines with all classes."""
    named = [{p["label"]: p["probability"] for p in json.loads(line)["predictions"]} for line in lines.splitlines()]
    return np.array([[row[name] for name in names] for row in named])


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory):
    """A model whose class names are hard to write."""
    path = tmp_path_factory.mktemp("names")
    args = ModelArguments(model="mlp", image_size=[8], model_args={"hidden_sizes": [8]})
    Classifier.build(args, SingleLabel(HOSTILE), ImageInfo((8, 8), 3), pretrained=False).save(path)
    return path


@pytest.fixture
def hostile_files(tmp_path):
    """Files with names like those."""
    names = ("a, b.png", 'the "c".png', "two\nlines.png", "carriage\rreturn.png", "熊猫🐼.png", "plain.png")
    return [draw(tmp_path / name, number) for number, name in enumerate(names)]


def test_the_probabilities_are_those_that_the_run_stored(digits_run, predict, tmp_path):
    for row in load_data(DataArguments(dataset="digits"))["test"]:
        row["image"].save(tmp_path / f"{row['index']}.png")
    code, lines, said = predict("--model", digits_run, tmp_path, "--format", "jsonl", "--top_k", 10)
    stored = read_predictions(digits_run / "evaluation")
    order = np.argsort(stored.index)
    assert (code, said) == (0, "")
    assert files_of(lines) == [str(tmp_path / f"{index}.png") for index in stored.index[order]]
    expected = softmax(stored.logits[order], axis=1)
    np.testing.assert_allclose(probabilities_of(lines, stored.task.names), expected, atol=1e-5)
    firsts = [json.loads(line)["predictions"][0]["label"] for line in lines.splitlines()]
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > 1e-4  # a tie may fall either way
    assert clear.mean() > 0.9
    assert np.array(firsts)[clear].tolist() == [stored.task.names[i] for i in stored.predicted[order][clear]]


def test_batches_that_do_not_fit_into_memory(hostile_model, predict, tmp_path, monkeypatch, refused):
    """They are refused before anything is written, with a batch size that fits."""
    files = [draw(tmp_path / f"{number}.png", number) for number in range(20)]
    monkeypatch.setattr("ftkit.training.stages.memory.available_memory", lambda: 10_000)
    options = ["--model", hostile_model, *files, "--output", tmp_path / "labels.txt"]
    with refused("memory: a batch of 20 images of 3 x 8 x 8 pixels", "--batch_size 4") as refusal:
        predict(*options)
    assert not (tmp_path / "labels.txt").exists()
    assert predict(*options, "--batch_size", refusal.value.fix["batch_size"])[0] == 0
    monkeypatch.setattr("ftkit.training.stages.memory.available_memory", lambda: 100)
    with refused("no single one fits"):
        predict(*options[:-1], tmp_path / "others.txt")


def test_in_a_tie_the_first_class_is_listed_first(hostile_model, predict, tmp_path):
    """As in an evaluation, which takes the lower index."""
    classifier = Classifier.load(str(hostile_model))
    head = classifier.model.classifier
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, 0.0)
    head.bias.data[[2, 4]] = 1.0
    classifier.save(tmp_path / "model")
    _, lines, _ = predict("--model", tmp_path / "model", draw(tmp_path / "a.png"), "--format", "jsonl", "--top_k", 6)
    listed = [HOSTILE.index(prediction["label"]) for prediction in json.loads(lines)["predictions"]]
    assert listed == [2, 4, 0, 1, 3, 5]


def test_every_family_sees_what_an_evaluation_sees(folder, predict, tmp_path):
    """Photos of several sizes and modes, as recipes/eval.py decodes, resizes and normalises them."""
    data, files, names = tmp_path / "data", [], Classifier.load(str(folder)).task.names
    for label, split in itertools.product(names, ("train", "validation", "test")):
        for number in range(6):
            size, mode = ((20, 30), (16, 16), (41, 17))[number % 3], ("RGB", "L", "P", "RGBA")[number % 4]
            file = draw(data / split / label / f"{number}.png", number + 100 * len(files), size, mode)
            files += [file] * (split == "test")
    load_recipe_script("eval").main(
        ["--model", str(folder), "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    )
    stored = read_predictions(tmp_path / "out")
    options = ["--model", folder, "--format", "jsonl", "--top_k", 2]
    _, lines, _ = predict(*options, data / "test")
    assert files_of(lines) == files
    expected = softmax(stored.logits, axis=1)
    np.testing.assert_allclose(probabilities_of(lines, stored.task.names), expected, atol=1e-5)
    _, alone, _ = predict(*options, files[1])  # a grey image has the same answer without colour images beside it
    np.testing.assert_allclose(probabilities_of(alone, stored.task.names), expected[1:2], atol=1e-5)


def test_a_model_that_was_saved_in_half_precision(convnet, predict, tmp_path):
    half = Classifier.load(str(convnet))
    half.model.to(torch.bfloat16)
    half.save(tmp_path / "half")
    image = draw(tmp_path / "a.png")
    rows = [
        predict("--model", path, image, "--format", "jsonl", "--top_k", 2)[1] for path in (convnet, tmp_path / "half")
    ]
    first, second = (probabilities_of(lines, ["0", "1"]) for lines in rows)
    np.testing.assert_allclose(first, second, atol=0.02)
    digits = ["--dataset", "digits", "--classes", "0", "1", "--output_dir"]
    for path in (convnet, tmp_path / "half"):
        load_recipe_script("eval").main(["--model", str(path), *digits, str(tmp_path / f"{path.name}-evaluated")])
    first, second = (read_predictions(tmp_path / f"{path.name}-evaluated") for path in (convnet, tmp_path / "half"))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=0.02)


def test_csv_survives_a_round_trip(hostile_model, hostile_files, predict, tmp_path):
    output = tmp_path / "labels.csv"
    options = ["--model", hostile_model, *hostile_files, "--format=csv", "--top-k=6"]
    code, shown, _ = predict(*options)
    assert code == 0 and predict(*options, "--output", output) == (0, "", "")
    assert output.read_bytes() == shown.encode()
    with output.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    ranks = range(1, 7)
    assert header == ["file", *(f"{name}_{rank}" for rank in ranks for name in ("label", "probability"))]
    assert [row[0] for row in rows] == hostile_files
    for row in rows:
        probabilities = [float(text) for text in row[2::2]]
        assert set(row[1::2]) == set(HOSTILE)
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(
            1, abs=1e-4
        )


def test_json_lines_are_one_object_each(hostile_model, hostile_files, predict):
    _, lines, _ = predict("--model", hostile_model, *hostile_files, "--format", "jsonl", "--top_k", 6)
    rows = [json.loads(line) for line in lines.split("\n")[:-1]]
    assert [row["file"] for row in rows] == hostile_files and "熊猫🐼.png" in lines
    for row in rows:
        assert row.keys() == {"file", "predictions"} and len(row["predictions"]) == 6
        assert {p["label"] for p in row["predictions"]} == set(HOSTILE)


def test_the_table_is_aligned_and_moves_no_cursor(hostile_model, hostile_files, predict):
    _, text, _ = predict("--model", hostile_model, *hostile_files, "--top_k", 6)
    lines = text.split("\n")[:-1]
    assert len(lines) == 1 + 6 * len(hostile_files) and all(line.isprintable() for line in lines)
    assert lines[0].split() == ["file", "probability", "label"]
    places = {
        line.index(" 0.") + len("熊猫🐼") * ("熊猫🐼.png" in line) for line in lines[1:]
    }  # each takes two columns
    assert len(places) == 1
    assert any("two\\nlines.png" in line for line in lines) and any("\\x1b[31mred" in line for line in lines)


def test_one_label_unless_more_are_asked_for(mlp, predict, tmp_path):
    image = draw(tmp_path / "a.png")
    _, line = predict("--model", mlp, image)[1].splitlines()
    assert line.startswith(image) and line.split()[-1] in "01" and 0.5 <= float(line.split()[-2]) <= 1
    _, lines, _ = predict("--model", mlp, image, "--top_k", 99, "--format", "csv")
    assert lines.splitlines()[0] == "file,label_1,probability_1,label_2,probability_2"


def test_inputs_keep_their_order_wherever_they_stand(mlp, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/10.png",
        "b/2.PNG",
        "b/c/1.jpg",
        "b/.hidden.png",
        "b/.git/3.png",
        "a.png",
        "x[1].png",
        "no suffix.png",
    ):
        draw(tmp_path / name)
    (tmp_path / "no suffix.png").rename(tmp_path / "no suffix")
    (tmp_path / "b/notes.txt").write_text("not an image")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b/10.png\r\n\nx[1].png\nb/c\n")))
    words = [
        "no suffix",
        "--model",
        mlp,
        "b",
        "--format",
        "jsonl",
        "-",
        "--batch_size",
        2,
        "b/**/1*",
        "x[1].png",
        "a.png",
    ]
    code, lines, said = predict(*words)
    assert (code, said) == (0, "")
    assert files_of(lines) == [
        "no suffix",
        *("b/2.PNG", "b/10.png", "b/c/1.jpg"),
        *("b/10.png", "x[1].png", "b/c/1.jpg"),
        *("b/10.png", "b/c/1.jpg"),
        "x[1].png",
        "a.png",
    ]


def test_broken_images_are_reported_and_skipped(mlp, predict, tmp_path):
    """With several processes, and a batch in which every image is broken."""
    good = [draw(tmp_path / f"{number}.png", number) for number in range(60)]
    broken = {"3.png": b"", "17.png": b"no image", "41.png": (tmp_path / "41.png").read_bytes()[:60]}
    broken |= {f"{number}.png": b"" for number in range(24, 32)}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    code, lines, said = predict("--model", mlp, tmp_path, "--format", "jsonl", "--batch_size", 8)
    assert code == 1
    assert files_of(lines) == [file for file in good if file.rpartition("/")[2] not in broken]
    reported = said.splitlines()
    assert [line.partition(": ")[0] for line in reported] == [
        str(tmp_path / f"{n}.png") for n in (3, 17, *range(24, 32), 41)
    ]
    assert all(line.partition(": ")[2] for line in reported) and "not an image of a known format" in reported[0]


def test_only_broken_images(mlp, predict, tmp_path, recwarn):
    """One line for each, without the decoder's own warnings."""
    (tmp_path / "a\nb.png").write_text("no image")
    whole = Path(draw(tmp_path / "c.tif")).read_bytes()
    (tmp_path / "c.tif").write_bytes(whole[:20])
    code, text, said = predict("--model", mlp, tmp_path, "--format", "csv")
    assert (code, text) == (1, "file,label_1,probability_1\r\n")
    first, second = said.splitlines()
    assert first == f"{tmp_path}/a\\nb.png: not an image of a known format" and second.startswith(
        f"{tmp_path}/c.tif: "
    )
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def test_a_reader_that_closes_the_pipe_is_no_error(mlp, tmp_path):
    """In a separate process: it exits with 0 and writes nothing to standard error."""
    image = draw(tmp_path / "a.png")
    command = [sys.executable, str(REPO / "recipes" / "predict.py"), "-", "--model", str(mlp), "--format", "jsonl"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        process.stdin.write(f"{image}\n" * 3000)
        process.stdin.close()
        assert json.loads(process.stdout.readline())["file"] == image
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.png"], ["model is missing", "--model"]),
        (["--model", "MODEL"], ["nothing to classify"]),
        (["--model", "mlp", "a.png"], ["mlp has no trained weights"]),
        (["--model", "MODEL", "--topk", "3", "a.png"], ["--topk", "'--top_k'"]),
        (["--model", "MODEL", "--top_k", "0", "a.png"], ["top_k", "'0'", "positive integer"]),
        (["--model", "MODEL", "--batch_size", "x", "a.png"], ["batch_size", "'x'"]),
        (["--model", "MODEL", "--format", "xml", "a.png"], ["--format", "xml", "jsonl"]),
        (["--model", "MODEL", "a.png", "--output", "a.png"], ["output", "a.png exists"]),
        (["--model", "MODEL", "a.png", "--output", "none/b.csv"], ["output", "none", "does not exist"]),
        (["--model", "nobody/nothing", "a.png", "b.png", "c.png"], ["b.png: there is no such", "c.png"]),
        (["--model", "nobody/nothing", "empty"], ["empty", "holds no images"]),
        (["--model", "nobody/nothing", "*.jpg"], ["*.jpg", "no image file matches"]),
        (["--model", "nobody/nothing", "-"], ["standard input is empty"]),
        (["--model", "nobody/nothing", "old"], ["\\udcff.png", "not UTF-8"]),
        (["--model", "nobody/nothing", "a.png"], ["nobody/nothing", "give --model"]),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(words, expected, mlp, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    draw(tmp_path / "a.png")
    draw(tmp_path / "old" / "\udcff.png")
    (tmp_path / "empty").mkdir()
    with refused(*expected):
        main([str(mlp) if word == "MODEL" else word for word in words])
    assert not (tmp_path / "b.csv").exists()
