"""Pushes to a server that speaks the Hub's protocol and simulates its faults."""

import json
import math
import subprocess
import sys

import huggingface_hub.constants as constants
import pytest
import yaml
from hub_server import HubServer, hub_environment
from huggingface_hub import ModelCard, get_session
from support import REPO, finetune, load_recipe_script, weights

from ftkit.hub import push as pushing
from ftkit.hub.card import verify_card
from ftkit.tasks.single_label.metrics import METRICS

SMALL = ["--max_train_samples", 150, "--num_train_epochs", 1]


@pytest.fixture
def unchecked(monkeypatch):
    """Skip the gate, which has its own tests."""
    monkeypatch.setattr(pushing, "check_parity", lambda *args, **kwargs: 0.0)


@pytest.fixture
def undrawn(unchecked, monkeypatch):
    """Skip the gate and the drawing of the figure, for tests of the network."""
    monkeypatch.setattr(pushing.plots, "png", lambda figure: b"")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_pushed_files(hub, unchecked, run):
    before = contents(run)
    address = pushing.push(run, "me/digits")
    files = hub.repos["me/digits"].files()
    assert address.startswith(f"{hub.url}/me/digits/commit/")
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "modeling_convnet.py",
            "channels.py", "evaluation/report.html", "evaluation/report.md", "evaluation/metrics.json",
            "evaluation/confusion_matrix.png"} <= files.keys()  # fmt: skip
    assert files["model.safetensors"] == before.pop(run.relative_to(run) / "model/model.safetensors")
    assert files["evaluation/confusion_matrix.png"].startswith(b"\x89PNG")
    assert not any(name.startswith(("evaluation/samples", "stages", "run.json")) for name in files)
    after = contents(run)
    assert all(after[path] == content for path, content in before.items() if path.name != "README.md")
    assert hub.token not in "".join(str(content) for content in files.values())


def test_the_card_is_valid_for_the_hub_and_matches_the_predictions(hub, unchecked, run, capsys, refused, tmp_path):
    pushing.push(run, "me/digits")
    card = ModelCard.load(run / "model" / "README.md")
    checked = {"repoType": "model", "content": str(card)}
    assert get_session().post(f"{hub.url}/api/validate-yaml", json=checked).json()["errors"] == []
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-classification"
    told = {result.metric_name: result.metric_value for result in card.data.eval_results}
    reported = json.loads((run / "evaluation" / "metrics.json").read_text())
    shown = [metric.title for key, metric in METRICS.items() if metric.hub_type and key in reported]
    assert list(told) == shown and told["accuracy"] > 0.9 and verify_card(run, card) == []
    assert 'pipeline("image-classification", "me/digits", trust_remote_code=True)' in card.text
    push = load_recipe_script("push").main
    push([str(run), "--verify"])
    assert "every number follows" in capsys.readouterr().out
    path, loss = run / "model" / "README.md", told["negative log-likelihood"]
    for elsewhere in (math.nextafter(loss, 1), loss + 1e-7):  # a difference between processors, and a wrong value
        changed = ModelCard(path.read_text().replace(f"value: {loss}", f"value: {elsewhere}"))
        assert len(verify_card(run, changed)) == (elsewhere - loss > 1e-8)
    row = f"| accuracy | {told['accuracy']:.4f} |"
    assert row in card.text
    older = ModelCard(path.read_text().replace(row, row.replace("accuracy", "accuracy, as once named")))
    assert verify_card(run, older) == []
    assert verify_card(run, ModelCard(path.read_text().replace(row, "| accuracy | 0.9999 |"))) == [
        f"the text lacks the line {row!r}"
    ]
    path.write_text(path.read_text().replace(f"value: {told['accuracy']}", "value: 0.9999"))
    with refused("accuracy: the card says 0.9999, the predictions give"):
        push([str(run), "--verify"])


def test_the_card_lists_what_was_chosen_and_nothing_at_its_default(tmp_path):
    options = ["--loss", "focal", "--focal_gamma", 3, "--l1", 0.001, "--layer_decay", 0.9, "--weight_decay", 0,
               "--cutmix", 0, "--logging_steps", 20]  # fmt: skip
    text = (finetune(tmp_path / "run", *SMALL, *options) / "model" / "README.md").read_text()
    table = text.partition("| hyperparameter | value |\n| --- | --- |\n")[2].partition("\n\n")[0]
    rows = dict(line.replace("\\", "").strip("| ").split(" | ") for line in table.splitlines())
    given = {"loss": "focal", "focal_gamma": "3.0", "l1": "0.001", "layer_decay": "0.9", "weight_decay": "0.0"}
    assert (given | {"max_train_samples": "150", "num_train_epochs": "1.0"}).items() <= rows.items()
    assert {"learning_rate", "seed"} <= rows.keys()
    at_default = {"mixup", "cutmix", "head_lr_multiplier", "data_engine", "eval_strategy", "save_strategy", "bf16"}
    assert rows.keys().isdisjoint({*at_default, "output_dir", "dataset", "model", "method"})


@pytest.mark.slow
def test_a_second_push_is_a_second_commit_and_deletes_stale_model_files(hub, undrawn, run):
    pushing.push(run, "me/digits")
    (run / "model" / "adapter_model.safetensors").write_bytes(b"an earlier push was one of adapters")
    pushing.push(run, "me/digits")
    (run / "model" / "adapter_model.safetensors").unlink()
    (run / "model" / "notes.txt").write_text("mine")
    pushing.push(run, "me/digits")
    assert {"adapter_model.safetensors"}.isdisjoint(hub.repos["me/digits"].files())
    (run / "model" / "notes.txt").unlink()
    pushing.push(run, "me/digits")
    assert "notes.txt" in hub.repos["me/digits"].files()  # what is no weight stays


def test_a_private_repository_and_a_branch(hub, undrawn, run):
    pushing.push(run, "me/secret", private=True, revision="v2")
    assert hub.repos["me/secret"].private
    assert "model.safetensors" in hub.repos["me/secret"].files("v2")
    assert "model.safetensors" not in hub.repos["me/secret"].files("main")


COMMIT, LFS, PUT = r"/commit/", r"/info/lfs/", r".*"


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "method": "POST", "path": COMMIT},
        {"status": 429, "method": "POST", "path": COMMIT, "headers": {"Retry-After": "1"}},
        {"status": 409, "method": "POST", "path": COMMIT},
        {"status": 503, "method": "POST", "path": LFS},
        {"status": 500, "method": "POST", "path": r"/preupload/"},
        {"status": 500, "method": "POST", "path": r"/repos/create"},
        {"cut": True, "method": "POST", "path": COMMIT},
        {"cut": True, "method": "PUT", "path": r".*"},
    ],
    ids=lambda fault: f"{fault.get('status', 'cut')} {fault['method']} {fault['path']}",
)
def test_a_temporary_fault_is_retried(hub, undrawn, run, fault):
    fault = dict(fault)
    (hub.cut if fault.pop("cut", False) else hub.fail)(times=2, **fault)
    pushing.push(run, "me/digits")
    files = hub.repos["me/digits"].files()
    assert files["model.safetensors"] == weights(run) and "README.md" in files
    assert len(hub.repos["me/digits"].commits) == 2  # the empty one, and one


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 401, "path": COMMIT}, ["the token is not valid", "hf auth login"]),
        ({"status": 403, "path": COMMIT}, ["may not write there"]),
        ({"status": 403, "path": r"/repos/create"}, ["creating me/digits", "may not write there"]),
        ({"status": 500, "path": COMMIT}, ["pushing to me/digits", "the Hub answers 500", "try again later"]),
        ({"status": 429, "path": COMMIT}, ["the Hub answers 429"]),
        ({"status": 409, "path": COMMIT}, ["the Hub answers 409"]),
        ({"cut": True, "path": COMMIT}, ["the connection to the Hub failed"]),
    ],
    ids=lambda value: f"{value.get('status', 'cut')} {value['path']}" if isinstance(value, dict) else "",
)
def test_a_permanent_fault_is_one_message_and_loses_nothing(hub, undrawn, run, refused, fault, words):
    before, fault = contents(run), dict(fault)
    (hub.cut if fault.pop("cut", False) else hub.fail)(times=99, method="POST", **fault)
    with refused(*words):
        pushing.push(run, "me/digits")
    assert hub.token not in "".join(words)
    changed = {path.name for path, content in contents(run).items() if before.get(path) != content}
    assert changed <= {"README.md"}
    if "me/digits" in hub.repos:
        assert "model.safetensors" not in hub.repos["me/digits"].files()  # all or nothing
    hub.heal()
    pushing.push(run, "me/digits")
    assert "model.safetensors" in hub.repos["me/digits"].files()


@pytest.mark.parametrize(("method", "place"), [("POST", "/preupload/"), ("POST", LFS), ("PUT", ""), ("POST", COMMIT)])
def test_a_hub_that_disappears_during_a_push(hub, undrawn, run, refused, monkeypatch, method, place):
    before, note = contents(run), hub._record

    def leave(asked, path):
        if asked == method and place in path:
            hub.stop()
        return note(asked, path)

    with monkeypatch.context() as context, refused("pushing to me/digits", "the connection to the Hub failed"):
        context.setattr(hub, "_record", leave)
        pushing.push(run, "me/digits")
    assert {path.name for path, content in contents(run).items() if before.get(path) != content} <= {"README.md"}
    hub.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    pushing.push(run, "me/digits")
    assert hub.repos["me/digits"].files()["model.safetensors"] == weights(run)


def test_a_failed_check_pushes_nothing(hub, run, refused):
    (run / "model" / "modeling_convnet.py").write_text("import ftkit")
    with refused("must not be pushed"):
        pushing.push(run, "me/digits")
    assert hub.repos == {}


@pytest.mark.parametrize(("token", "words"), [(None, ["no token found", "HF_TOKEN"]), ("hf_wrong", ["not valid"])])
def test_a_missing_login_is_an_error_before_training(hub, monkeypatch, tmp_path, refused, token, words):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with refused(*words):
        finetune(tmp_path / "run", *SMALL, "--push_to_hub", "true", "--hub_model_id", "me/digits")
    assert not (tmp_path / "run").exists()


def test_a_token_in_a_recipe_is_refused(tmp_path, refused):
    with refused("hub_token", "leave it out", "HF_TOKEN"):
        finetune(tmp_path / "run", *SMALL, "--push_to_hub", "true", "--hub_token", "hf_secret")


def test_adapters_of_a_model_that_is_not_on_the_hub_are_refused(hub, digits_run, tmp_path, refused):
    run = finetune(tmp_path / "run", *SMALL, "--model", digits_run / "model", "--method", "lora")
    with refused("holds adapters of a model that is not on the Hub", "--merge_adapters true"):
        pushing.push(run, "me/lora")


TRAIN_AND_PUSH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import finetune, load_recipe_script
out, vit = Path(sys.argv[2]), sys.argv[3]
small = ["--max_train_samples", 150, "--num_train_epochs", 1]
options = {
    "mlp": ["--model", "mlp"],
    "convnet": ["--model", "convnet"],
    "resnet18": ["--model", "timm/resnet18", "--image_size", 32],
    "vit": ["--model", vit, "--method", "full"],
}
for name, own in options.items():
    run = finetune(out / name, *small, *own)
    load_recipe_script("push").main([str(run), "--hub_model_id", f"me/{name}"])
finetune(out / "lora", *small, "--model", "me/vit", "--method", "lora", "--classes", 5, 6, 7,
         "--push_to_hub", "true", "--hub_model_id", "me/lora", "--hub_private_repo", "true", "--hub_license", "mit")
"""
RELOAD = """
import json, sys
sys.modules["ftkit"] = None
from pathlib import Path
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

for name in ("mlp", "convnet", "resnet18", "vit", "lora"):
    id, code = f"me/{name}", {"trust_remote_code": name in ("mlp", "convnet")}
    if name == "lora":
        config = AutoConfig.from_pretrained(id)
        base = AutoModelForImageClassification.from_pretrained("me/vit", config=config, ignore_mismatched_sizes=True)
        model = PeftModel.from_pretrained(base, id).merge_and_unload()
    else:
        model = AutoModelForImageClassification.from_pretrained(id, **code)
    classify = pipeline("image-classification", model, image_processor=AutoImageProcessor.from_pretrained(id, **code),
                        function_to_apply="none", top_k=20)
    samples = sorted((Path(sys.argv[1]) / name / "evaluation" / "samples").iterdir())
    answers = [{a["label"]: a["score"] for a in classify(Image.open(path))} for path in samples]
    print(json.dumps({"name": name, "index": [int(path.name) for path in samples], "answers": answers}))
"""


@pytest.mark.slow
def test_every_kind_of_model_comes_back_with_the_same_logits(tmp_path):
    """Trained, pushed and pulled by separate processes; the one that pulls has no ftkit."""
    import json

    import numpy as np
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from ftkit.evaluation.predictions import read_predictions

    size = {"height": 8, "width": 8}
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, num_labels=10)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "random-vit")
    ViTImageProcessor(size=size).save_pretrained(tmp_path / "random-vit")
    with HubServer() as hub:
        for script, arguments, cache in (
            (TRAIN_AND_PUSH, [REPO / "tests", tmp_path / "runs", tmp_path / "random-vit"], "one"),
            (RELOAD, [tmp_path / "runs"], "another"),
        ):
            done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], cwd=tmp_path,
                                  env=hub_environment(hub, tmp_path / cache), capture_output=True, text=True,
                                  timeout=600)  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            assert hub.token not in done.stdout + done.stderr
        assert hub.repos["me/lora"].private and not hub.repos["me/mlp"].private
        files = hub.repos["me/lora"].files()
        evaluate = [
            REPO / "recipes" / "eval.py",
            "--model",
            "me/lora",
            "--dataset",
            "digits",
            "--classes",
            5,
            6,
            7,
        ]
        again = subprocess.run([sys.executable, *map(str, evaluate), "--output_dir", "again"], cwd=tmp_path,
                               env=hub_environment(hub, tmp_path / "third"), capture_output=True, text=True,
                               timeout=600)  # fmt: skip
        assert again.returncode == 0, again.stderr[-3000:]
    whole, test = (read_predictions(folder) for folder in (tmp_path / "again", tmp_path / "runs/lora/evaluation"))
    rows = [whole.index.tolist().index(index) for index in test.index]  # digits have no split of their own
    np.testing.assert_allclose(whole.logits[rows], test.logits, atol=1e-4)
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    metadata = next(yaml.safe_load_all(files["README.md"].decode().removeprefix("---\n").split("\n---\n")[0]))
    assert metadata["base_model"] == "me/vit" and metadata["library_name"] == "peft" and metadata["license"] == "mit"
    for answer in map(json.loads, done.stdout.splitlines()):
        stored = read_predictions(tmp_path / "runs" / answer["name"] / "evaluation")
        rows = {index: row for row, index in enumerate(stored.index.tolist())}
        logits = stored.logits[[rows[index] for index in answer["index"]]]
        given = [[scores[name] for name in stored.task.names] for scores in answer["answers"]]
        np.testing.assert_allclose(given, logits, atol=1e-4, err_msg=answer["name"])
