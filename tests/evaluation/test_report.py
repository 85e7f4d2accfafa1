"""The report: made from stored files, always with the same bytes, and shown correctly by a browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support import TINY, finetune, load_recipe_script, noise_images, random_predictions, store, train

from ftkit.evaluation.predictions import read_predictions
from ftkit.evaluation.report import write_report
from ftkit.run import evaluate

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }}",
    "$\\frac{1}{2}$ & | `code` *stars*",
    "a very long name " * 8,
    "unbroken" * 20,
    "熊猫",
    "🐼🎋",
    "-->]]></svg></style>",
    "ordinary",
]
PATHS = [
    "<script>alert(3)</script>.png",
    "שלום/עולם/תמונה 3.png",
    "photos/" + "a very long folder name/" * 6 + "IMG_20240102_123456.jpg",
    "unbroken" * 20 + ".png",
    "犬/写真🐕‍🦺.jpg",
    "evil\u202egpj.exe",
    "new\nline\x1b[2J.png",
    "'\"><img src=x onerror=alert(4)>.png",
    "a|b`c*_d.png",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The report of a run with malicious names of classes and files."""
    folder = tmp_path_factory.mktemp("hostile") / "evaluation"
    test, validation = random_predictions(HOSTILE, 500), random_predictions(HOSTILE, 200, seed=1)
    test = replace(test, about={"source": [f"{i}/{PATHS[i % len(PATHS)]}" for i in range(500)]})
    skipped = {
        "test": [
            {"file": "<b>x</b>.png", "xxh3_64": "0badcafe0badcafe", "reason": "<i>torn</i>", "index": 3, "row": 3}
        ]
    }
    store(folder, test, validation, dataset="<u>data</u>", skipped_images=skipped, commit="<s>c</s>")
    return write_report(folder)


def browse(page, folder, width=1280):
    """The DOM of the page in Chromium, the lines on its console, and every address it requested."""
    log = folder / "net.json"
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", f"--user-data-dir={folder / 'chromium'}", "--enable-logging=stderr",
         f"--log-net-log={log}", f"--window-size={width},2000", "--virtual-time-budget=3000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser's own requests, for updates and the time, come from no page.
    asked = {e["url"] for e in events if e.get("initiator", "not an origin") != "not an origin"}
    return done.stdout, console, asked


def test_a_report_is_rebuilt_byte_for_byte(tmp_path, digits_run):
    run = shutil.copytree(digits_run, tmp_path / "run")
    folder = run / "evaluation"
    names = ("report.html", "report.md", "metrics.json")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    load_recipe_script("report").main([str(run)])
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_a_run_of_several_stages_has_all_sections(tmp_path, digits_run):
    run = finetune(tmp_path / "run", "--model", digits_run / "model", "--method", "lp_ft", *TINY,
                   "--test_time_augmentation", "flip")  # fmt: skip
    page = (run / "evaluation" / "report.html").read_text()
    for text in ("chosen checkpoint", "0: head", "1: all", "Confusion matrix", "Reliability diagram", "Dividing the "
                 "logits", "Most confident errors", "No image is in two splits", "Every image decoded", "images/s",
                 "accuracy with test-time augmentation", "floating-point operations", "seed 42"):  # fmt: skip
        assert text in page, text
    record = json.loads((run / "run.json").read_text())
    assert record["commit"] is None or record["commit"] in page
    assert html.escape(record["command"]) in page or record["command"] in html.unescape(page)
    assert record["flops_per_image"] > record["parameters"]["total"]
    assert {split: sum(counts.values()) for split, counts in record["class_counts"].items()} == record["splits"]


def test_names_are_shown_literally(hostile):
    page, short = hostile.read_text(encoding="utf-8"), hostile.with_name("report.md").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and "<b>x</b>" not in page
    for name in HOSTILE:
        assert html.escape(name, quote=False) in page.replace("&#34;", '"').replace("&#39;", "'")
    assert "\\<script\\>" in short and "🐼🎋" in short
    rows = [line for line in short.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (4, 5, 6) for row in rows)


def test_each_image_is_named_and_opens_larger(hostile):
    page, predictions = html.unescape(hostile.read_text(encoding="utf-8")), read_predictions(hostile.parent)
    shown = [at for kind in predictions.task.gallery(predictions).values() for at in kind]
    assert len(shown) == 48
    for at in shown:
        entry = page.partition(f'<li id="image-{at}"')[2].partition("</li>")[0]
        assert f'href="#image-{at}"' in entry and f'href="#by-{at}"' in entry and f'id="by-{at}"' in entry
        path = predictions.sources[at].translate({10: "\\n", 27: "\\x1b", 0x202E: "\\u202e"})
        assert f'<b><bdi dir="ltr">{path.replace("/", "/<wbr>")}</bdi></b>' in entry
        for name, probability in predictions.likeliest(at, 5):
            row = rf"{re.escape(name)}</span>((?!</tr>).)*{100 * probability:.1f}%</td></tr>"
            assert re.search(row, entry, re.DOTALL), (name, entry)
        assert entry.count("the true class</small>") == 1
    text = hostile.with_name("report.md").read_text(encoding="utf-8")
    assert "\\<script\\>alert(3)" in text and "\x1b" not in text and "\u202e" not in text + page


def test_the_errors_are_a_table(hostile):
    predictions = read_predictions(hostile.parent)
    table = pd.read_csv(hostile.with_name("errors.csv"), keep_default_na=False)
    assert list(table.columns) == ["path", "truth", "prediction", "confidence"]
    wrong = {predictions.sources[at]: at for at in np.flatnonzero(~predictions.hits)}
    assert sorted(table["path"]) == sorted(wrong) and table["confidence"].is_monotonic_decreasing
    for row in table.itertuples():
        at = wrong[row.path]
        assert row.truth == HOSTILE[predictions.labels[at]] and row.prediction == HOSTILE[predictions.predicted[at]]
        assert row.confidence == pytest.approx(predictions.confidences[at], rel=1e-5)


@needs_browser
def test_a_page_that_uses_the_network_is_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<img src='http://example.test/x.png'><script>console.error('no')</script>")
    _, console, asked = browse(page, tmp_path)
    assert asked == {"http://example.test/x.png"} and "no" in console[0]


@needs_browser
def test_a_browser_shows_the_report_without_errors(hostile, tmp_path):
    dom, console, asked = browse(hostile, tmp_path)
    assert console == [] and asked == set()
    assert "<script" not in dom and "onerror" not in re.sub(r">[^<]*<|\"[^\"]*\"", "", dom)
    assert dom.count("<svg") == len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', dom)) == 2
    assert dom.count("<img") == len(re.findall(r'<img src="data:image/png;base64,[^"]+" alt="[^"]+"', dom)) == 48


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_its_window(hostile, tmp_path, width):
    """Nothing overflows to the side; only tables may scroll within themselves."""
    page = tmp_path / "frame.html"
    inner = html.escape(hostile.read_text(encoding="utf-8"))
    page.write_text(
        f'<meta charset="utf-8"><iframe width="{width}" height="900" style="border:0" srcdoc="{inner}"></iframe>'
        "<script>addEventListener('load', () => {"
        "const root = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${root.scrollWidth} of ${root.clientWidth}` })</script>",
        encoding="utf-8",
    )
    dom, *_ = browse(page, tmp_path, width + 100)
    needed, given = map(int, re.search(r"<title>(\d+) of (\d+)</title>", dom).groups())
    assert needed <= given <= width


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_larger_picture_fills_the_window(hostile, tmp_path, width):
    page = tmp_path / "frame.html"
    inner = hostile.read_text(encoding="utf-8")
    first, other = re.findall(r'<li id="(image-\d+)"', inner)[:2]
    page.write_text(
        f'<meta charset="utf-8"><iframe width="{width}" height="900" style="border:0"'
        f' srcdoc="{html.escape(inner)}"></iframe>'
        "<script>addEventListener('load', () => {"
        "const frame = document.querySelector('iframe'), inner = frame.contentDocument;"
        f"frame.contentWindow.location.hash = '{first}';"
        "setTimeout(() => {"
        "const [open, other] = ['" + first + "', '" + other + "'].map(id => inner.getElementById(id));"
        "const shown = e => e.querySelector('.closer').getBoundingClientRect().height > 0;"
        "const all = open.getBoundingClientRect();"
        "document.title = [all.width, all.height, shown(open), shown(other), open.scrollWidth].join(' ') }, 200)})"
        "</script>",
        encoding="utf-8",
    )
    dom, *_ = browse(page, tmp_path, width + 100)
    across, down, opened, others, needed = re.search(r"<title>(.*)</title>", dom)[1].split()
    assert width - 20 <= int(across) <= width and down == "900"  # beside the scroll bar
    assert (opened, others) == ("true", "false") and int(needed) <= width


@pytest.mark.parametrize("skill", [-40.0, 40.0])
def test_a_model_that_is_always_wrong_or_always_right_has_a_report(tmp_path, skill):
    names = ["a", "b"]
    test = random_predictions(names, 60, skill=skill)
    page = write_report(store(tmp_path / "e", test, random_predictions(names, 30, skill=skill))).read_text()
    assert ("None: every prediction is correct." if skill > 0 else "None: every prediction is wrong.") in page


def test_the_report_stays_small_with_many_classes_and_images(tmp_path):
    names = [f"class number {i}" for i in range(200)]
    page = write_report(store(tmp_path / "e", random_predictions(names, 5000), random_predictions(names, 1000, 1)))
    assert page.stat().st_size < 5e6
    assert page.read_text().count("class number 199") >= 2


def test_the_gallery_shows_the_right_pictures(digits_run):
    """The most confident errors and the least confident hits first, each with its own pixels."""
    from PIL import Image

    from ftkit.config import DataArguments
    from ftkit.data.sources.load import load_data
    from ftkit.evaluation.gallery import thumbnail

    predictions = read_predictions(digits_run / "evaluation")
    errors, hits = predictions.task.gallery(predictions).values()
    assert not predictions.hits[errors].any() and predictions.hits[hits].all()
    assert predictions.confidences[errors[0]] == predictions.confidences[~predictions.hits].max()
    assert predictions.confidences[hits[0]] == predictions.confidences[predictions.hits].min()
    assert (np.diff(predictions.confidences[errors]) <= 0).all() and (
        np.diff(predictions.confidences[hits]) >= 0
    ).all()
    test = load_data(DataArguments(dataset="digits"))["test"]
    rows = dict(zip(test["index"], test["image"], strict=True))
    for position in [*errors, *hits]:
        with Image.open(thumbnail(digits_run / "evaluation", predictions, position)) as picture:
            assert np.array_equal(picture, rows[predictions.index[position]])


def test_what_is_not_used_is_shown(tmp_path):
    rows = [
        {
            "where": "<b>bee</b>",
            "n": 1200,
            "what": "file",
            "suffixes": ".HEIC",
            "reason": "not an image format that ftkit reads",
        },
        {"where": "test", "n": 1, "what": "image", "reason": "not decoded"},
    ]
    place = write_report(store(tmp_path / "run", random_predictions(["a", "b"], 20), not_used=rows)).parent
    page = (place / "report.html").read_text()
    for words in ("<td>&lt;b&gt;bee&lt;/b&gt;</td><td>1,200</td><td>files (.HEIC)</td>", "<td>image</td>"):
        assert words in page
    assert "1,200 files (.HEIC): not an image format that ftkit reads." in (place / "report.md").read_text()


@pytest.mark.parametrize("what", ["nothing", "no record", "not a run"])
def test_a_folder_without_a_finished_run_is_refused(tmp_path, refused, what):
    folder = tmp_path / "run"
    if what == "no record":
        (store(folder, random_predictions(["a", "b"], 20)) / "run.json").unlink()
    elif what == "not a run":
        folder.mkdir()
    with refused("run", "give the folder of a finished run"):
        load_recipe_script("report").main([str(folder)])


def test_twins_in_train_and_test_are_found(tmp_path, capsys):
    """The same file in both splits, once under another label."""
    folders = ("train/cat", "train/dog", "test/cat", "test/dog")
    root = noise_images(tmp_path / "pets", dict.fromkeys(folders, 20))
    shutil.copy(root / "train/cat/0.png", root / "test/cat/twin.png")
    shutil.copy(root / "train/cat/1.png", root / "test/dog/mislabelled.png")
    run = finetune(tmp_path / "run", "--data_dir", root, "--validation_size", 0.1, "--num_train_epochs", 1)
    found = {pair["also_in"]: pair for pair in json.loads((run / "run.json").read_text())["duplicates"]}
    assert sum(pair["n"] for pair in found.values()) == 2
    assert sum(pair["with_another_label"] for pair in found.values()) == 1
    assert all(pair["split"] == "test" for pair in found.values())
    page = (run / "evaluation" / "report.html").read_text()
    assert all(f"test images are also in {other}" in page for other in found)
    shared = found["train"]["n"] if "train" in found else 0
    said = f"identical to images of train: {shared} of the 42 images of test"
    assert (said in capsys.readouterr().out) == (shared > 0)


def test_both_engines_hash_the_same_files(tmp_path):
    options = ["--max_train_samples", 60, "--num_train_epochs", 1]
    jobs = [train(tmp_path / engine, *options, "--data_engine", engine) for engine in ("tensor", "stream")]
    for job in jobs:
        evaluate(job)
    first, second = (job.predicted["plain"] for job in jobs)
    assert np.array_equal(first.hashes, second.hashes) and len(set(first.hashes.tolist())) > 350
    assert first.task == second.task
