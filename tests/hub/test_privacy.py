"""Nothing of this machine is pushed: all places of a run are marked, and no uploaded byte has the mark."""

import json
import shutil
import socket

import pytest
from safetensors.torch import load_file, save_file
from support import answers_here, finetune, load_recipe_script, noise_images
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from ftkit.evaluation.predictions import read_predictions
from ftkit.hub import push as pushing
from ftkit.hub.privacy import check_private

MARK = "SECRET_USER"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A marked home folder with photos and a trained model."""
    home = tmp_path / MARK
    noise_images(home / "photos", {"cat": 16, "dog": 16}, size=(16, 16))
    shutil.copy(home / "photos/cat/0.png", home / "photos/dog/twin.png")
    (home / "photos" / "dog" / "torn.png").write_bytes(b"torn")
    (home / "photos" / "notes.json").write_text("{torn")  # files that are not used
    (home / "photos" / "list.csv").write_text(f"file_name,kind\n{home}/gone.png,x\n")
    (home / "photos" / "cat" / "readme.txt").write_text("cats")
    config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, num_labels=2)  # fmt: skip
    config.made_by = {"file": str(home / "old" / "w.bin"), "sep": "/"}  # as some bases have
    ViTForImageClassification(config).save_pretrained(home / "models" / "base")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(home / "models" / "base")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def test_a_pushed_run_does_not_tell_where_it_was_made(home, hub, monkeypatch):
    arguments = ["--data_dir", home / "photos", "--model", home / "models" / "base", "--method", "full",
                 "--cache_dir", home / "cache", "--num_train_epochs", 1, "--on_bad_image", "skip"]  # fmt: skip
    monkeypatch.setattr("sys.argv", [str(home / "ftkit/recipes/finetune.py"), *map(str, arguments)])
    run = finetune(home / "runs" / "first", *arguments)
    monkeypatch.setattr("ftkit.hub.parity._load_elsewhere", answers_here)
    pushing.push(run, "me/pets")
    repo = hub.repos["me/pets"]
    for path, content in repo.files().items():
        assert MARK.encode() not in content.replace(b"\\", b""), path  # Markdown escapes the line
    assert not any(MARK in commit.message for commit in repo.commits)
    card = repo.files()["README.md"].decode()
    assert "# base on photos" in card and "fine-tuned with the method `full` from local weights" in card
    assert (
        "--data_dir photos --model base --method full --cache_dir cache"
        in repo.files()["evaluation/report.md"].decode()
    )
    assert json.loads(repo.files()["config.json"])["made_by"] == {"file": "w.bin", "sep": "/"}
    # What stays here needs only the places in config.yaml.
    assert MARK in (run / "config.yaml").read_text() and MARK not in (run / "run.json").read_text()
    for split in ("", "validation"):
        table = read_predictions(run / "evaluation" / split)
        assert not any(MARK in source or source.startswith("/") for source in table.sources)
    assert MARK not in (run / "evaluation" / "errors.csv").read_text()
    load_recipe_script("eval").main(["--model", str(run), "--output_dir", str(home / "again")])
    written = [path for path in (home / "again").rglob("*") if path.is_file()]
    assert written and not any(MARK.encode() in path.read_bytes() for path in written)


@pytest.fixture
def files(run):
    return {path.name: path for path in (run / "model").iterdir()} | {"report.html": run / "evaluation/report.html"}


def in_json(path, text):
    (path / "model" / "preprocessor_config.json").write_text(json.dumps({"note": f"from {text}"}))


def in_markup(path, text):
    from ftkit.evaluation.pages import markdown

    (path / "model" / "notes.md").write_text(f"made in {markdown(text)}")


def in_page(path, text):
    import html

    (path / "evaluation" / "report.html").write_text(f"<p title='{html.escape(text)}'></p>")


def in_weights(path, text):
    file = path / "model" / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "source": text})


@pytest.mark.parametrize("plant", [in_json, in_markup, in_page, in_weights])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{run}", "the run's folder"),
        ("{home}/.cache/x", "your home folder"),
        ("{data}/cat/1.png", "data_dir"),
        ("/home/alice/x", "a home folder, /home/alice"),
        (r"C:\Users\alice\x", r"a home folder, C:\Users\alice"),
        ("file:///mnt/disk/x", "a file's address"),
        ("my-node-17", "the name of this machine"),
        ("hf_AbcdefghijklmnopqrstuvwxyzABCD", "a token of the Hub"),
        ("tr0ub4dor&3", "a secret of this process"),
    ],
)
def test_whatever_else_brings_a_place_along_is_refused(run, files, tmp_path, monkeypatch, refused, plant, text, what):
    monkeypatch.setenv("HOME", str(tmp_path / "Jürg_'s <home>"))
    monkeypatch.setenv("SOME_PASSWORD", "tr0ub4dor&3")
    monkeypatch.setattr(socket, "gethostname", lambda: "my-node-17.cluster.test")
    config, public = {"data_dir": str(tmp_path / "Jürg_'s <data>")}, ["me", "digits", "7"]
    check_private(files, run, config, public)
    text = text.format(run=run, home=tmp_path / "Jürg_'s <home>", data=config["data_dir"])
    plant(run, text)
    files |= {path.name: path for path in (run / "model").iterdir()}
    with refused("must not be pushed", what) as refusal:
        check_private(files, run, config, public)
    assert "hf_Abc" not in str(refusal.value) and "tr0ub4dor" not in str(refusal.value)


def test_names_that_only_look_like_places_are_pushed(run, files, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "digits")
    monkeypatch.setenv("HOME", "/root")
    kept = (
        "https://x.test/root/home/a, https://api.github.com/users/a, [home](/homepage), profile:/x, hf_transfer, 1/2"
    )
    (run / "model" / "notes.md").write_text(kept)
    check_private(files | {"notes.md": run / "model" / "notes.md"}, run, {"data_dir": None}, ["digits"])
