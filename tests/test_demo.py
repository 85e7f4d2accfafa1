"""The demo: the pixels and probabilities of an evaluation, drawings as MNIST's images were made, nothing but text."""

import ast
import asyncio
import base64
import contextlib
import itertools
import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from support import REPO, finetune, load_recipe_script, real_data

gr = pytest.importorskip("gradio")

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from ftkit.config import DataArguments  # noqa: E402
from ftkit.data.pixels.images import encoded, to_mode  # noqa: E402
from ftkit.data.sources.load import load_data  # noqa: E402
from ftkit.demo.answers import Demo, trained_on  # noqa: E402
from ftkit.demo.page import build_page, fit_drawing, serve, unique_names  # noqa: E402
from ftkit.evaluation.predictions import read_predictions  # noqa: E402
from ftkit.models.classifier import Classifier  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "unbroken" * 20, "熊猫 🐼🎋", "{{ 7 * 7 }}"]
MNIST = partial(fit_drawing, size=(28, 28), share=20 / 28)
demo = load_recipe_script("demo")


@pytest.fixture(autouse=True)
def gradio_elsewhere(tmp_path, monkeypatch):
    """What gradio stores goes away with the test, and so does what the script writes into the environment."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")


@pytest.fixture
def start():
    """`start(page)` serves a page and returns its address."""
    pages = []

    def start(page: gr.Blocks) -> str:
        serve(page, quiet=True, prevent_thread_lock=True)
        pages.append(page)
        return page.local_url

    yield start
    for page in pages:
        page.close()


@pytest.fixture
def hosts(monkeypatch):
    """The names of all machines that this process asks the addresses of."""
    asked, ask = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **options: asked.add(host) or ask(host, *more, **options)
    )
    return asked


def picture(strokes, side=280, width=22, ink=0, ground=255) -> Image.Image:
    """A drawing on a square pad, of lines through points in units of the pad's side."""
    image = Image.new("L", (side, side), ground)
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [(side * x, side * y) for x, y in stroke]
        draw.line(points, fill=ink, width=width, joint="curve")
    return image


def oval(x, y, rx, ry):
    return [(x + rx * math.sin(t / 20 * math.pi), y - ry * math.cos(t / 20 * math.pi)) for t in range(41)]


ZERO, ONE = [oval(0.5, 0.5, 0.2, 0.32)], [[(0.5, 0.18), (0.5, 0.82)]]
SEVEN = [[(0.3, 0.22), (0.68, 0.22), (0.45, 0.82)]]
DIGITS = {"0": ZERO, "1": ONE, "7": SEVEN}


def all_kinds(folder: Path) -> list[Path]:
    """Image files of every kind that is decoded in a way of its own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8))
    grey = colours.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    colours.save(folder / "rgb.png")
    colours.save(folder / "turned.jpg", exif=turned)
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    colours.resize((200, 300)).save(folder / "large.webp")
    colours.quantize(8).save(folder / "palette.png", transparency=0)
    grey.save(folder / "grey.gif")
    grey.convert("1").save(folder / "bilevel.png")
    Image.merge("LA", (grey, grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM))).save(folder / "grey_alpha.png")
    Image.fromarray(rng.integers(0, 2**16, (30, 20)).astype(np.uint16)).save(folder / "16_bit.png")
    colours.putalpha(grey)
    colours.save(folder / "alpha.png")
    return sorted(folder.iterdir())


# ── arguments ──


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", ["--model"]),
        ("--model nowhere", ["model", "nowhere"]),
        ("--model MODEL --prt 80", ["--prt"]),
        ("--model MODEL --port 70000", ["port", "70000", "65535"]),
        ("--model MODEL --trust_remote_code maybe", ["trust_remote_code", "maybe", "true or false"]),
        ("--model MODEL --hub_model_id a/b", ["hub_model_id", "--space"]),
        ("--model MODEL --space MODEL", ["space", "exists", "new folder"]),
        ("--model MODEL --space NEW --hub_model_id a/b/c", ["hub_model_id", "a/b/c"]),
        ("--model MODEL --space NEW --hub_model_id a/b", ["hub_model_id", "a/b", "--trust_remote_code true"]),
        ("--model MODEL --host 192.0.2.1", ["192.0.2.1", "--host"]),
    ],
)
def test_mistakes_are_answered(words, told, convnet, tmp_path, refused):
    places = {"MODEL": str(convnet), "NEW": str(tmp_path / "new")}
    with refused(*told):
        demo.main([places.get(word, word) for word in words.split()])
    assert not (tmp_path / "new").exists()


def test_a_port_that_is_taken_is_refused(convnet, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refused(f"127.0.0.1:{port}", "in use", "--port"):
            demo.main(["--model", str(convnet), "--port", str(port)])


def test_without_gradio_it_says_how_to_get_it(convnet, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with refused("pip install -e '.[demo]'"):
        demo.main(["--model", str(convnet)])


# ── the same pixels ──


def test_uploads_give_the_probabilities_of_an_evaluation(folder, tmp_path):
    shown, seen = Demo(Classifier.load(str(folder))), set()
    files = all_kinds(tmp_path / "files")
    for split, name in itertools.product(("train", "validation", "test"), shown.names):
        shutil.copytree(tmp_path / "files", tmp_path / "data" / split / name)
    arguments = ["--model", str(folder), "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    load_recipe_script("eval").main(arguments)
    stored = read_predictions(tmp_path / "out")
    rows = encoded(load_data(DataArguments(data_dir=str(tmp_path / "data")))["test"])["image"]
    for index, probabilities in zip(stored.index, stored.probabilities, strict=True):
        path = rows[index]["path"]
        with Image.open(path) as image:
            answer = shown(to_mode(image, shown.classifier.channels))
        assert list(answer) == stored.task.names
        np.testing.assert_allclose(list(answer.values()), probabilities, atol=1e-5, err_msg=path)
        seen.add(Path(path).name)
    assert seen == {file.name for file in files}


def test_the_page_gives_the_probabilities_of_the_run(digits_run, tmp_path, start, hosts):
    """From the file to the answer, over HTTP; and no other machine is asked for anything."""
    shown = Demo(Classifier.load(str(digits_run)))
    client = Client(start(build_page("digits", shown, 1, shown.fit("digits"))), verbose=False)
    stored = read_predictions(digits_run / "evaluation")
    images = load_data(DataArguments(dataset="digits"))["test"]
    for position in range(3):
        file = tmp_path / f"{position}.png"
        images[position]["image"].save(file)
        answer = client.predict(handle_file(file), api_name="/classify_file")
        told = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
        expected = dict(zip(stored.task.names, stored.probabilities[position], strict=True))
        assert list(told) == sorted(expected, key=expected.get, reverse=True)[:5]
        assert told == pytest.approx({name: expected[name] for name in told}, abs=1e-5)
    assert hosts <= {"127.0.0.1", "localhost"}


def test_what_is_no_image_is_a_message(convnet, tmp_path, start):
    shown = Demo(Classifier.load(str(convnet)))
    url = start(build_page("digits", shown, 1, None))
    client = Client(url, verbose=False)
    Image.effect_noise((50, 50), 99).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    for name, message in (
        ("torn.png", "This image does not decode: image file is truncated"),
        ("text.png", "This is not an image of a known format."),
        ("drawing.svg", "This is not an image of a known format."),
    ):
        with pytest.raises(AppError) as told:
            client.predict(handle_file(tmp_path / name), api_name="/classify_file")
        assert told.value.message.startswith(message) and str(tmp_path) not in told.value.message
    assert client.predict(handle_file(tmp_path / "whole.png"), api_name="/classify_file")["label"] in ("0", "1")


def test_names_that_classes_share_are_told_apart():
    assert unique_names(["crane", "heron", "crane"]) == ["crane (0)", "heron", "crane (2)"]


# ── drawings ──


@pytest.mark.parametrize("strokes", DIGITS.values(), ids=DIGITS)
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (28, 40)])
def test_a_drawing_is_made_as_mnist_was(strokes, size):
    """20 of 28 pixels, the centre of mass in the middle; whatever was made so already stays as it is."""
    made = fit_drawing(picture(strokes), size, share=20 / 28)
    assert made.mode == "L" and made.size == size[::-1] and made.getextrema() == (0, 255)
    values = np.asarray(made, float)
    left, top, right, bottom = made.getbbox()
    assert max(right - left, bottom - top) == round(min(size) * 20 / 28)
    for axis, side in ((1, size[0]), (0, size[1])):
        centre = np.average(np.arange(side), weights=values.sum(axis))
        assert abs(centre - side / 2) <= 0.5
    enlarged = made.resize((made.width * 10, made.height * 10), Image.Resampling.NEAREST)
    assert np.abs(np.asarray(fit_drawing(enlarged, size, share=20 / 28), float) - values).mean() < 1


def test_colours_and_places_of_a_drawing_do_not_matter():
    expected = np.asarray(MNIST(picture(SEVEN)), int)
    moved = [[(0.6 * x + 0.38, 0.6 * y) for x, y in SEVEN[0]]]
    for image in (
        picture(SEVEN, ink=255, ground=0),
        picture(SEVEN, ink=90, ground=200),
        picture(moved, side=467),  # as many pixels, in another corner
    ):
        assert np.abs(np.asarray(MNIST(image), int) - expected).mean() < 2
    on_colours = Image.composite(Image.new("RGB", (280, 280), "navy"), Image.new("RGB", (280, 280), "yellow"),
                                 picture(SEVEN, ink=255, ground=0))  # fmt: skip
    assert np.abs(np.asarray(MNIST(to_mode(on_colours, 1)), int) - expected).mean() < 2
    transparent = Image.new("RGBA", (280, 280))
    transparent.putalpha(picture(SEVEN, ink=255, ground=0))
    assert np.abs(np.asarray(MNIST(to_mode(transparent, 1)), int) - expected).mean() < 2


def test_drawings_at_the_limits():
    for ground in (0, 128, 255):
        assert MNIST(Image.new("L", (280, 280), ground)) is None
    dot = MNIST(picture([[(0.1, 0.1), (0.11, 0.1)]]))
    assert np.asarray(dot)[14, 14] == 255
    hair = MNIST(picture([[(0.2, 0), (0.2, 1)]], width=1))
    assert hair.getbbox()[2] - hair.getbbox()[0] == 1 and hair.getextrema()[1] == 255
    # The centre of mass lies so far to one side that the whole would not fit around it.
    heavy = picture([[(0.1, 0.5), (0.9, 0.5)]], width=3)
    ImageDraw.Draw(heavy).rectangle((10, 100, 60, 180), fill=0)
    left, _, right, _ = MNIST(heavy).getbbox()
    assert right - left == 20


def test_which_models_can_be_drawn_for(digits_run, convnet, folder):
    """Those of the ten digits, of small grey images, and of data that is known to be drawn."""
    assert Demo(Classifier.load(str(digits_run))).fit(None).keywords == {"size": (8, 8), "share": 1.0}
    small = Demo(Classifier.load(str(convnet)))
    assert small.fit(None).keywords == {"size": (8, 8), "share": 20 / 28}
    other = Demo(Classifier.load(str(folder)))
    assert (other.fit("photos") is None) == (other.classifier.channels == 3)
    assert other.fit("fashion_mnist").keywords == {"size": (16, 16), "share": 20 / 28}


def test_drawn_digits_are_recognised(digits_run):
    """Test images of the run, 256 pixels large and in black and white, as somebody would draw them."""
    shown = Demo(Classifier.load(str(digits_run)))
    fit, hits = shown.fit(trained_on(str(digits_run))), []
    for row in load_data(DataArguments(dataset="digits"))["test"]:
        large = row["image"].convert("L").resize((256, 256), Image.Resampling.BICUBIC)
        answer = shown(fit(large.point([255] * 110 + [0] * 146)))
        hits.append(max(answer, key=answer.get) == str(row["label"]))
    assert np.mean(hits) > 0.75


def test_an_empty_pad_asks_for_a_drawing(start):
    page = build_page("digits", lambda image: {"0": 0.75, "1": 0.25}, 1, MNIST)
    client = Client(start(page), verbose=False)
    empty = {"background": None, "layers": [], "composite": None}
    assert client.predict(empty, api_name="/classify_drawing")["label"] == "Draw something"


def test_the_pad_hands_over_what_is_drawn(tmp_path, start):
    given = []
    page = build_page("digits", lambda image: given.append(image) or {"0": 0.75, "1": 0.25}, 1, MNIST)
    client = Client(start(page), verbose=False)
    for name, drawing in (("blank", Image.new("RGB", (280, 280), "white")), ("zero", picture(ZERO).convert("RGB"))):
        drawing.save(tmp_path / f"{name}.png")
        drawn = {"background": None, "layers": [], "composite": handle_file(tmp_path / f"{name}.png")}
        answer = client.predict(drawn, api_name="/classify_drawing")
        assert answer["label"] == ("Draw something" if name == "blank" else "0")
    assert len(given) == 1 and np.array_equal(given[0], MNIST(picture(ZERO)))


@pytest.mark.slow
def test_drawn_mnist_is_recognised_as_well_as_the_data(tmp_path):
    run = mnist_run(tmp_path)
    data = load_data(DataArguments(data_dir=str(real_data("mnist"))))["test"].select(range(1000))
    shown, hits = Demo(Classifier.load(str(run))), {"plain": 0, "drawn": 0}
    for row in data:
        image = row["image"].convert("L")
        large = image.resize((280, 280), Image.Resampling.BICUBIC).point([255] * 110 + [0] * 146)
        for name, given in (("plain", image), ("drawn", shown.fit("mnist")(large))):
            answer = shown(given)
            hits[name] += max(answer, key=answer.get) == str(row["label"])
    assert hits["plain"] > 950 and hits["drawn"] > hits["plain"] - 10


def mnist_run(folder: Path) -> Path:
    data, recipe = real_data("mnist"), REPO / "recipes" / "mnist" / "convnet.yaml"
    return finetune(folder / "run", "--config", recipe, "--data_dir", data, "--num_train_epochs", 2,
                    "--max_train_samples", 10_000)  # fmt: skip


# ── a Space ──


def write_space(model: Path | str, folder: Path, *options: str) -> Path:
    demo.main(["--model", str(model), "--space", str(folder), *options])
    return folder


def metadata(space: Path) -> dict:
    _, head, rest = (space / "README.md").read_text(encoding="utf-8").split("---\n")
    assert rest == ""
    return yaml.safe_load(head)


def assert_answers_alike(space: Path, shown: Demo, files: list[Path]) -> None:
    """The Space's own code, in this process, against the demo."""
    app = runpy.run_path(str(space / "app.py"))
    for file in files:
        with Image.open(file) as image:
            pixels = to_mode(image, shown.classifier.channels)
        assert np.array_equal(pixels, app["to_mode"](Image.open(file), app["CHANNELS"]))
        answer, expected = app["classify"](pixels), shown(pixels)
        assert list(answer) == list(expected)
        np.testing.assert_allclose(list(answer.values()), list(expected.values()), atol=1e-5, err_msg=file.name)


def test_a_space_answers_as_the_demo(folder, tmp_path):
    space = write_space(folder, tmp_path / "space")
    assert_answers_alike(space, Demo(Classifier.load(str(folder))), all_kinds(tmp_path / "files"))
    told = metadata(space)
    assert told.pop("sdk_version") == gr.__version__ and re.fullmatch(r"3\.\d+", told.pop("python_version"))
    assert told == {"title": folder.name, "sdk": "gradio", "app_file": "app.py"}
    needed = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    own = {"timm"} if "test_" in folder.name else set()
    assert needed.keys() == {"gradio", "torch", "torchvision", "transformers"} | own
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in needed.values())


def test_a_space_imports_only_what_it_may(convnet, tmp_path):
    space = write_space(convnet, tmp_path / "space")
    code = (space / "app.py").read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert found - sys.stdlib_module_names <= {"gradio", "transformers", "torch", "timm", "peft", "PIL", "numpy"}
    assert all(word not in code for word in (str(convnet), str(tmp_path)))  # it lies elsewhere there


@pytest.mark.slow
def test_a_space_starts_where_there_is_no_ftkit(digits_run, tmp_path):
    """As the Hub starts it: `python app.py`, in a process of its own."""
    space = write_space(digits_run, tmp_path / "space")
    shutil.move(space, tmp_path / "moved")
    code = (
        "import runpy, sys; sys.modules['ftkit'] = None; "
        f"runpy.run_path({str(tmp_path / 'moved' / 'app.py')!r}, run_name='__main__')"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    shown = Demo(Classifier.load(str(digits_run)))
    with started([sys.executable, "-c", code], environment, tmp_path) as (url, _):
        client = Client(url, verbose=False)
        for file in all_kinds(tmp_path / "files"):
            with Image.open(file) as image:
                expected = shown(to_mode(image, 1))
            answer = client.predict(handle_file(file), api_name="/classify_file")
            told = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
            assert told == pytest.approx({name: expected[name] for name in told}, abs=1e-5)
        picture(ZERO).convert("RGB").save(tmp_path / "zero.png")
        drawn = {"background": None, "layers": [], "composite": handle_file(tmp_path / "zero.png")}
        answer = client.predict(drawn, api_name="/classify_drawing")
        expected = shown(shown.fit("digits")(picture(ZERO)))
        assert answer["label"] == max(expected, key=expected.get)


@pytest.mark.slow
def test_a_space_holds_adapters_as_plain_weights(digits_run, tmp_path, refused):
    run = finetune(tmp_path / "run", "--model", digits_run / "model", "--method", "lora", "--num_train_epochs", 1,
                   "--max_train_samples", 200)  # fmt: skip
    with refused("hub_model_id", "adapters", "someone/digits"):
        write_space(run, tmp_path / "space", "--hub_model_id", "someone/digits", "--trust_remote_code", "true")
    space = write_space(run, tmp_path / "space")
    assert not (space / "model" / "adapter_config.json").exists()
    assert "peft" not in (space / "requirements.txt").read_text()
    assert_answers_alike(space, Demo(Classifier.load(str(run))), all_kinds(tmp_path / "files"))


@pytest.fixture
def put_on_hub(tmp_path):
    """`hub(folder, card)` puts a model into the local cache of the Hub, as `someone/pictures`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place, commit = Path(HF_HUB_CACHE) / "models--someone--pictures", "0" * 40

    def put(folder: Path, card: str | None = None) -> str:
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        if card is not None:
            (place / "snapshots" / commit / "README.md").write_text(card)
        return "someone/pictures"

    yield put
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("folder", ["timm/test_resnet", "vit"], indirect=True)  # without code of their own
@pytest.mark.parametrize("card", [None, "---\nlicense: mit\n---\n# Pictures\n", "# no metadata\n"])
def test_a_space_for_a_model_of_the_hub_names_it(folder, put_on_hub, card, tmp_path):
    name = put_on_hub(folder, card)
    space = write_space(name, tmp_path / "space")
    assert not (space / "model").exists()
    told = metadata(space)
    assert (told["title"], told["models"]) == (name, [name])
    assert told.get("license") == ("mit" if card and "mit" in card else None)
    assert "trust_remote_code" not in (space / "app.py").read_text()
    assert_answers_alike(space, Demo(Classifier.load(name)), all_kinds(tmp_path / "files"))


def test_code_of_the_hub_runs_only_where_it_is_allowed(convnet, put_on_hub, tmp_path, refused):
    name = put_on_hub(convnet)
    with refused(name, "--trust_remote_code true"):
        write_space(name, tmp_path / "space")
    app = (write_space(name, tmp_path / "space", "--trust_remote_code", "true") / "app.py").read_text()
    assert f"MODEL = {name!r}" in app and "'trust_remote_code': True" in app


def test_a_space_of_a_local_model_can_name_the_hub(digits_run, tmp_path):
    options = ["--hub_model_id", "someone/digits", "--revision", "v1", "--trust_remote_code", "true"]
    model = shutil.copytree(digits_run, tmp_path / "run") / "model"
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    space = write_space(model, tmp_path / "deep" / "space", *options)
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    app = (space / "app.py").read_text()
    assert "MODEL = 'someone/digits'" in app and "'revision': 'v1'" in app and "share=1.0" in app
    told = metadata(space)
    assert (told["title"], told["models"], told["license"]) == ("someone/digits", ["someone/digits"], "apache-2.0")


# ── in the browser ──


@contextlib.contextmanager
def started(command, environment, folder):
    """A script that serves a page: its address, and the process."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            lines = itertools.takewhile(bool, iter(process.stdout.readline, ""))
            found = next(filter(None, (re.search(r"http://\S+", line) for line in lines)), None)
            assert found, (folder / "log").read_text()
            yield found[0], process
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_the_script_serves_until_it_is_stopped(convnet, tmp_path):
    import urllib.request

    command = [sys.executable, str(REPO / "recipes" / "demo.py"), "--model", str(convnet)]
    with started(command, dict(os.environ), tmp_path) as (url, process):
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url) as answer:
            assert f"<title>{convnet.name}" in answer.read().decode() or answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


class Tab:
    """A tab of Chromium, through the DevTools protocol."""

    def __init__(self, connection):
        self.connection, self.numbers, self.events = connection, itertools.count(1), []

    async def __call__(self, method: str, **parameters):
        number = next(self.numbers)
        await self.connection.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self.connection.receive_json(timeout=60)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def value(self, expression: str):
        """What the page says an expression is."""
        answer = await self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, expression: str):
        for _ in range(300):
            if await self.value(f"Boolean({expression})"):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{expression} did not come true: {await self.value('document.body.innerText')}")

    async def draw(self, strokes):
        """Draw with the mouse, in units of the pad's side."""
        box = json.loads(await self.value(f"JSON.stringify({PAD}.getBoundingClientRect())"))
        side = 0.8 * min(box["width"], box["height"])  # the white ground within
        left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
        for stroke in strokes:
            ways = itertools.pairwise(stroke)
            points = [
                (left + side * (x + t * (u - x)), top + side * (y + t * (v - y)))
                for (x, y), (u, v) in ways
                for t in np.linspace(0, 1, max(2, int(30 * math.dist((x, y), (u, v)))))
            ]
            await self.mouse("mouseMoved", *points[0], button="none")
            await self.mouse("mousePressed", *points[0], button="left", buttons=1, clickCount=1)
            for point in points[1:]:
                await self.mouse("mouseMoved", *point, button="left", buttons=1)
            await self.mouse("mouseReleased", *points[-1], button="left", clickCount=1)

    async def mouse(self, kind: str, x: float, y: float, **more):
        await self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    async def screenshot(self, path: Path):
        path.write_bytes(base64.b64decode((await self("Page.captureScreenshot"))["data"]))


PAD, ANSWER = "document.querySelector('canvas')", "document.querySelector('#answer')"


def in_chromium(url: str, job, folder: Path, width: int = 1280, dark: bool = False) -> set[str]:
    """Let `job(tab)` use the page, which must fit its window and say no error; what the page asked for."""

    async def run():
        import aiohttp  # comes with datasets

        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", f"--user-data-dir={folder / 'chromium'}", "--remote-debugging-port=0",
            f"--log-net-log={folder / 'net.json'}", "about:blank",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        try:
            while not (found := re.search(rb"ws://([^/]+)/", await process.stderr.readline())):
                assert process.returncode is None
            asyncio.get_running_loop().create_task(process.stderr.read())
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{found[1].decode()}/json") as answer:
                    tabs = await answer.json(content_type=None)
                address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as connection:
                    tab = Tab(connection)
                    for domain in ("Page", "Runtime", "Log"):
                        await tab(f"{domain}.enable")
                    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                    await tab("Emulation.setEmulatedMedia", features=scheme)
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                    await tab("Emulation.setDeviceMetricsOverride", **size)
                    await tab("Page.navigate", url=url)
                    await tab.wait_for(f"{ANSWER} && {PAD} && document.querySelector('[aria-label=Brush]')")
                    await tab.wait_for(f"{ANSWER}.innerText.includes('Draw something')")
                    await asyncio.sleep(1)  # until the pad has taken its brush up
                    await job(tab)
                    assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
                    await tab("Browser.close")
            await asyncio.wait_for(process.wait(), 30)  # the log is whole then
            return tab.events
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    events = asyncio.run(run())
    kinds = {event["method"] for event in events}
    assert not kinds & {"Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
    logged = [event["params"]["entry"] for event in events if event["method"] == "Log.entryAdded"]
    assert [entry for entry in logged if entry["level"] == "error"] == []
    events = [event.get("params", {}) for event in json.loads((folder / "net.json").read_text())["events"]]
    # The browser's own requests, after updates and the time, come from no page.
    return {event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"}


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_digit_is_drawn_and_recognised(digits_run, tmp_path, start, width, dark):
    shown = Demo(Classifier.load(str(digits_run)))
    url = start(build_page("digits", shown, 1, shown.fit("digits")))

    async def job(tab):
        for digit, strokes in (("0", ZERO), ("1", ONE)):
            await tab.draw(strokes)
            await tab.wait_for(f"/^{digit}\\n/.test({ANSWER}.innerText.trim())")
            await tab.screenshot(tmp_path / f"{digit}.png")
            await tab.value("document.querySelector('[aria-label=\"Clear canvas\"]').click()")
            await tab.wait_for(f"{ANSWER}.innerText.includes('Draw something')")
            await asyncio.sleep(1)

    asked = in_chromium(url, job, tmp_path, width, dark)
    assert asked and all(address.startswith((url, "data:", "blob:")) for address in asked)


@needs_browser
@pytest.mark.slow
def test_digits_are_drawn_for_mnist(tmp_path, start):
    shown = Demo(Classifier.load(str(mnist_run(tmp_path))))
    url = start(build_page("mnist", shown, 1, shown.fit("mnist")))

    async def job(tab):
        for digit, strokes in DIGITS.items():
            await tab.draw(strokes)
            await tab.wait_for(f"/^{digit}\\n/.test({ANSWER}.innerText.trim())")
            await tab.value("document.querySelector('[aria-label=\"Clear canvas\"]').click()")
            await tab.wait_for(f"{ANSWER}.innerText.includes('Draw something')")
            await asyncio.sleep(1)

    in_chromium(url, job, tmp_path)


@needs_browser
@pytest.mark.slow
def test_names_are_shown_as_text(tmp_path, start):
    """Class names and a title that mean harm, at the width of a phone."""
    probabilities = dict(zip(HOSTILE, (0.3, 0.25, 0.2, 0.15, 0.1), strict=True))
    url = start(build_page(HOSTILE[1] + " ${7 * 7}", lambda image: probabilities, 1, MNIST))

    async def job(tab):
        await tab.draw(ONE)
        await tab.wait_for(f"{ANSWER}.innerText.includes('30%')")
        shown = await tab.value("document.body.innerText")
        assert all(name in shown for name in [*HOSTILE, HOSTILE[1] + " ${7 * 7}"])
        assert await tab.value("document.title") == HOSTILE[1] + " ${7 * 7}"
        assert await tab.value("document.querySelectorAll('img[src=x], #answer script').length") == 0
        assert await tab.value(f"{ANSWER}.scrollWidth <= {ANSWER}.clientWidth")
        await tab.screenshot(tmp_path / "names.png")

    asked = in_chromium(url, job, tmp_path, width=390)
    assert all(address.startswith((url, "data:", "blob:")) for address in asked)
