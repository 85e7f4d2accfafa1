"""The whole job from Python, as in a notebook."""

import json

import pytest
import torch
from support import LEARNS, TINY, finetune, load_recipe_script
from transformers import AutoModelForImageClassification

from ftkit import run

QUICK = ["--dataset", "digits", "--model", "mlp", *map(str, TINY)]


def test_run_does_the_same_as_the_script(tmp_path):
    recipe = load_recipe_script("finetune").DEFAULT_RECIPE
    job = run.run([*LEARNS, *QUICK, "--output_dir", str(tmp_path / "notebook")], recipe)
    script = finetune(tmp_path / "script", *QUICK)
    weights = [path / "model" / "model.safetensors" for path in (job.folder, script)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    stored = [json.loads((path / "evaluation" / "metrics.json").read_text()) for path in (job.folder, script)]
    assert stored[0] == stored[1] == json.loads(json.dumps(job.metrics))
    assert {path.name for path in job.folder.iterdir()} == {path.name for path in script.iterdir()}


def test_the_steps_can_be_taken_one_by_one(tmp_path):
    """So that, e.g., the model can be changed between two steps."""
    job = run.start(run.parse_config([*QUICK, "--output_dir", str(tmp_path / "run")]))
    run.read_data(job)
    run.build_classifier(job)
    torch.nn.init.zeros_(job.classifier.model.classifier.bias)
    run.make_plan(job)
    with run.own_folder(job):
        run.train(job)
        run.evaluate(job)
        run.write_results(job)
    assert run.push(job) is None
    saved = AutoModelForImageClassification.from_pretrained(job.folder / "model", trust_remote_code=False)
    assert torch.equal(saved.classifier.bias, job.classifier.model.classifier.bias)


def test_a_step_out_of_order_names_what_is_missing(tmp_path):
    job = run.start(run.parse_config([*QUICK, "--output_dir", str(tmp_path / "run")]))
    with pytest.raises(AttributeError, match="dataset"):
        run.build_classifier(job)


def test_mistakes_raise_user_errors(tmp_path, refused):
    with refused("did you mean 'mlp'"):
        run.run(["--dataset", "digits", "--model", "mpl", "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(("size", "lacking"), [(3, True), (300, False)])
def test_classes_that_a_small_train_split_lacks_are_logged(tmp_path, caplog, size, lacking):
    job = run.start(
        run.parse_config([*QUICK, "--max_train_samples", str(size), "--output_dir", str(tmp_path / "run")])
    )
    run.read_data(job)
    assert ("train: no image of 7 of the 10 classes: '" in caplog.text) == lacking
