"""How paths are shown to others."""

import json
from pathlib import Path

import pytest
from support import REPO

from ftkit.errors import printable
from ftkit.places import all_shown, clean_json, command_shown, is_path, shown


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("timm/resnet18.a1_in1k", None),
        ("google/vit-base-patch16-224", None),
        ("cifar10", None),
        ("{home}/photos", "photos"),
        ("{home}/photos/", "photos"),
        ("{home}/model", "model"),
        ("{home}", "~"),
        ("~", "~"),
        ("~/photos/flowers", "flowers"),
        ("~someone", "~"),
        ("~someone/flowers", "flowers"),
        ("/", "~"),
        ("/gone/Someone/flowers", "flowers"),
        ("{home}/photos/../flowers.csv", "flowers.csv"),
        ("../photos", "photos"),
        ("./photos", "photos"),
        ("{home}/runs/first/model", "first"),
        (r"C:\Users\Someone\flowers", "flowers"),
        ("D:/Someone/flowers", "flowers"),
        ("c:\\", "~"),
        (r"\\server\Someone\flowers", "flowers"),
        ("file:///home/someone/flowers", "flowers"),
        ("{home}/ünï 犬", "ünï 犬"),
        (str(REPO / "recipes" / "digits" / "convnet.yaml"), "recipes/digits/convnet.yaml"),
    ],
)
def test_a_path_is_shown_by_its_name(tmp_path, monkeypatch, place, name):
    home = tmp_path / "SECRET"
    monkeypatch.setenv("HOME", str(home))
    (home / "photos").mkdir(parents=True)
    (home / "model").mkdir()
    (home / "runs/first/model").mkdir(parents=True)
    (home / "runs/first/run.json").touch()
    monkeypatch.chdir(home / "photos")
    text = place.format(home=home)
    assert shown(text) == (name or text) and is_path(text) == (name is not None)
    assert shown(shown(text)) == shown(text)


def test_a_local_folder_called_like_a_model_of_the_hub_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "someone" / "net").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_path("someone/net") and shown("someone/net") == "net"


def test_a_command_line_keeps_everything_but_paths(tmp_path):
    words = [
        "--model_args", json.dumps({"pretrained_cfg_overlay": {"file": str(tmp_path / "w.bin"), "mean": [0.5]}}),
        f"--data_dir={tmp_path}/photos", "--output_dir", str(tmp_path / "new"), "--learning_rate", "3e-4",
        "--stages", '[{"train": ["layer\\\\.4.*", "fc"]}]', "--model", "timm/resnet18", "{not json", "--bf16",
    ]  # fmt: skip
    found = command_shown(words)
    assert found[:5] == [
        "--model_args", '{"pretrained_cfg_overlay": {"file": "w.bin", "mean": [0.5]}}', "--data_dir=photos",
        "--output_dir", "new",
    ]  # fmt: skip
    assert found[5:] == words[5:]
    assert command_shown(["--seed", "hf_" + "Ab1" * 8]) == ["--seed", "hf_…"]
    assert not any(part in word for word in found for part in Path(tmp_path).parts[1:-1])


def test_no_message_shows_a_token():
    assert printable(f"refused: 'hf_{'Ab1' * 8}', hf_transfer") == "refused: 'hf_…', hf_transfer"


def test_a_configuration_keeps_everything_but_paths(tmp_path):
    kept = {"sep": "/", "dot": ".", "name": "google/vit", "a": [1, None, "x\\.y", "~"], "url": "https://x.test/home/a"}
    lost = {"file": "/home/someone/w.bin", "deep": [{"b": r"C:\Users\Someone\w.bin", "c": "../someone/x"}]}
    assert all_shown(kept) == kept
    assert all_shown(lost) == {"file": "w.bin", "deep": [{"b": "w.bin", "c": "x"}]}
    file = tmp_path / "config.json"
    file.write_text(text := json.dumps(kept, indent=7))
    clean_json(file)
    assert file.read_text() == text  # not written anew
    file.write_text(json.dumps(kept | lost))
    clean_json(file)
    assert json.loads(file.read_text()) == kept | all_shown(lost)
