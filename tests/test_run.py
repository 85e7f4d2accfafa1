"""The whole job from Python, as a notebook has it."""

import json

import pytest
import torch
from support import TINY, finetune, load_recipe_script
from transformers import AutoModelForImageClassification

from ftkit import run

QUICK = ["--dataset", "digits", "--model", "mlp", *map(str, TINY)]


def test_a_notebook_runs_the_whole_job_as_the_script_does(tmp_path):
    recipe = load_recipe_script("finetune").DEFAULT_RECIPE
    job = run.run([*QUICK, "--output_dir", str(tmp_path / "notebook")], recipe)
    script = finetune(tmp_path / "script", *QUICK)
    weights = [path / "model" / "model.safetensors" for path in (job.folder, script)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    stored = [json.loads((path / "evaluation" / "metrics.json").read_text()) for path in (job.folder, script)]
    assert stored[0] == stored[1] == json.loads(json.dumps(job.metrics))
    assert {path.name for path in job.folder.iterdir()} == {path.name for path in script.iterdir()}


def test_the_steps_can_be_taken_one_by_one(tmp_path):
    """Such as to change the model between two of them."""
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


def test_mistakes_are_errors_of_the_user(tmp_path, refused):
    with refused("did you mean 'mlp'"):
        run.run(["--dataset", "digits", "--model", "mpl", "--output_dir", str(tmp_path / "run")])
