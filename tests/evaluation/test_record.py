"""What a run reports on its last screen, in `run.json`, on its card and in its report."""

import json

import pytest
from support import MLP, TINY, finetune, stage_results, train


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], True),
        (["--eval_strategy", "no"], False),
        (["--load_best_model_at_end", "false"], False),
        (["--stages", '[{"train": "all"}, {"train": "head", "eval_strategy": "no", "load_best_model_at_end": false}]'],
         False),
    ],
    ids=["chosen", "no evaluation", "not kept", "not in the last stage"],
)  # fmt: skip
def test_a_checkpoint_is_called_chosen_only_if_validation_chose_it(tmp_path, capsys, options, chosen):
    run = finetune(tmp_path / "run", *TINY, *MLP, "--num_train_epochs", 2, *options)
    result = next(line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("accuracy "))
    card, page = (run / "model" / "README.md").read_text(), (run / "evaluation" / "report.html").read_text()
    for text, said in ((result, "chosen on validation"), (card, "was chosen on a validation split")):
        assert (said in text) == chosen, text
    for text, said in ((result, "the last weights of training"), (card, "those at the end of training")):
        assert (said in text) != chosen, text
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert (stages[-1]["best_step"] is not None) == (stages[-1]["best_metric"] is not None) == chosen
    stars = any(stage["best_step"] is not None for stage in stages)
    assert ("The star marks the checkpoint that validation chose" in page) == ("chosen checkpoint" in page) == stars


def test_trained_parameters_are_those_of_all_stages(convnet, tmp_path):
    """Parameters that two stages train count once; those that only a smaller stage trains count, too."""
    stages = '[{"train": "head"}, {"train": ["stages.0", "stages.1"]}, {"train": ["stages.1", "stem"]}]'
    job = train(tmp_path / "run", "--model", convnet, "--method", "full", "--stages", stages,
                "--max_train_samples", 60, "--num_train_epochs", 1)  # fmt: skip
    frozen = 207_936  # stages.2
    assert job.plan.trained == job.classifier.model.num_parameters() - frozen
    assert max(stage["trained_parameters"] for stage in job.stages) < job.plan.trained


def test_images_per_second_agree_with_the_seconds(tmp_path):
    run = train(tmp_path / "run", *TINY, *MLP, "--num_train_epochs", 3).folder
    (stage,) = stage_results(run)
    assert stage["images_per_second"] == pytest.approx(3 * 100 / stage["seconds"], rel=1e-9)
