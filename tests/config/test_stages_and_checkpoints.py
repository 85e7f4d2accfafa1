"""Which checkpoint is best in a run and in a stage, and which settings a stage may change."""

import json

import pytest
from support import MLP, finetune, stage_results, train

from ftkit.owners import parse_config

SMALL = [*MLP, "--max_train_samples", 64, "--per_device_train_batch_size", 32, "--learning_rate", 0.05]


def logged(stage, key):
    """The values that a stage logged, by step."""
    log = json.loads((stage / "trainer_state.json").read_text())["log_history"]
    return {line["step"]: line[key] for line in log if key in line}


def best(stage):
    return json.loads((stage / "trainer_state.json").read_text())["best_global_step"]


def test_a_stage_chooses_by_its_own_metric(tmp_path):
    stages = [{"train": "all", "name": "a"}, {"train": "all", "name": "b", "metric_for_best_model": "loss"}]
    options = [*SMALL, "--num_train_epochs", 3, "--metric_for_best_model", "accuracy"]
    run = train(tmp_path / "run", *options, "--stages", json.dumps(stages)).folder
    accuracies, losses = logged(run / "stages/0-a", "eval_accuracy"), logged(run / "stages/1-b", "eval_loss")
    assert best(run / "stages/0-a") == max(accuracies, key=accuracies.get)
    assert len(losses) == 3 and best(run / "stages/1-b") == min(losses, key=losses.get)


@pytest.mark.parametrize("stages", [[], [{"train": "all"}, {"train": "all", "eval_strategy": "steps"}]])
def test_every_evaluated_step_is_saved(tmp_path, stages):
    """Without `eval_steps` these are every `logging_steps`, as transformers documents."""
    options = ["--stages", json.dumps(stages)] if stages else ["--eval_strategy", "steps"]
    run = train(tmp_path / "run", *SMALL, "--num_train_epochs", 3, *options, "--logging_steps", 2,
                "--save_total_limit", 9).folder  # fmt: skip
    stage = max((run / "stages").iterdir())
    losses = logged(stage, "eval_loss")
    assert sorted(losses) == [2, 4, 6]
    assert sorted(int(path.name[11:]) for path in stage.glob("checkpoint-*")) == [2, 4, 6] and best(stage) in losses


def test_eval_steps_beyond_the_end_of_training_are_refused(tmp_path, refused):
    with refused("eval_steps: 50 is more than the 6 steps", "set it to 6 or less"):
        train(tmp_path / "run", *SMALL, "--num_train_epochs", 3, "--eval_strategy", "steps")
    train(tmp_path / "run", *SMALL, "--num_train_epochs", 3, "--eval_strategy", "steps", "--eval_steps", 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--eval_delay", 5],
            "eval_delay: 5 is more than the 3 epochs of training, so no checkpoint would be chosen: set it to 3 or "
            "less",
        ),
        (["--eval_delay", 9, "--eval_strategy", "steps", "--eval_steps", 2], "more than the 6 steps of training"),
        (["--warmup_steps", 500], "warmup_steps: 500 takes all of the 6 steps of training"),
        (["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"power": "x"}'], "lr_scheduler_kwargs"),
    ],
)
def test_settings_that_this_training_cannot_use_are_refused(tmp_path, refused, options, words):
    with refused(words):
        finetune(tmp_path / "run", *SMALL, "--num_train_epochs", 3, *options)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_epochs_of_a_stage_override_the_steps_of_the_run(tmp_path):
    stages = json.dumps([{"train": "head", "num_train_epochs": 3}, {"train": "all"}])
    run = train(tmp_path / "run", *SMALL, "--max_steps", 1, "--stages", stages).folder
    assert [stage["steps"] for stage in stage_results(run)] == [6, 1]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"push_to_hub": True}, "stages[1]: push_to_hub applies to the whole run: move it out of stages"),
        ({"bf16": True}, "stages[1]: bf16 applies to the whole run"),
        ({"eval_strategy": "no"}, "stages[1]: early_stopping_patience needs load_best_model_at_end"),
        ({"save_strategy": "steps"}, "stages[1]: save_strategy: steps and eval_strategy: epoch differ"),
        (
            {"greater_is_better": False},
            "stages[1]: greater_is_better: false would choose the checkpoint with the worst",
        ),
        ({"learning_rate": -1}, "stages[1]: learning_rate: -1"),
        ({"fp16_full_eval": True}, "stages[1]: fp16_full_eval: True evaluates in another precision"),
    ],
)
def test_invalid_settings_of_a_stage_are_refused_at_the_start(refused, stage, words):
    stages = json.dumps([{"train": "head"}, {"train": "all", **stage}])
    with refused(words):
        parse_config(["--dataset", "digits", "--early_stopping_patience", "2", "--stages", stages])


def test_a_saved_recipe_has_the_same_stages(tmp_path):
    """It spells out what follows from other keys; in a stage that still follows from the stage's own."""
    stages = [{"train": "head"}, {"train": "all", "eval_strategy": "steps", "logging_steps": 5}, {"train": "all"}]
    config = parse_config(["--dataset", "digits", "--stages", json.dumps(stages)])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = parse_config(["--config", str(tmp_path / "config.yaml")])
    for number, stage in enumerate(stages):
        own = {key: value for key, value in stage.items() if key != "train"}
        first, second = (one.of_stage(own, tmp_path).to_dict() for one in (config, again))
        assert first == second
        assert (first["eval_steps"], first["save_steps"]) == ((5, 5) if number == 1 else (None, 500))


def test_how_often_a_stage_saves_follows_its_own_evaluations(tmp_path):
    """`save_steps` follows the stage's `eval_steps`, whatever the run or a saved recipe says."""
    config = parse_config(["--dataset", "digits", "--eval_steps", "16"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for one in (config, parse_config(["--config", str(tmp_path / "config.yaml")])):
        args = one.of_stage({"eval_steps": 4.0}, tmp_path)
        assert (one.training.save_steps, args.eval_steps, args.save_steps) == (16, 4, 4)


def test_derived_settings_follow_from_a_stages_own_keys(tmp_path):
    config = parse_config(["--dataset", "digits"])
    args = config.of_stage({"metric_for_best_model": "loss", "gradient_checkpointing": True}, tmp_path)
    assert (config.training.greater_is_better, args.greater_is_better) == (True, False)
    assert (config.training.activation_checkpointing, args.activation_checkpointing) == (False, True)


def test_later_changes_of_the_run_reach_its_stages(tmp_path):
    config = parse_config(["--dataset", "digits"])
    config.training.dataloader_num_workers, config.training.resume_from_checkpoint = 3, "true"
    args = config.of_stage({"num_train_epochs": 1.0}, tmp_path)
    assert (args.dataloader_num_workers, args.resume_from_checkpoint) == (3, "true")
    assert config.of_stage({"dataloader_num_workers": 1}, tmp_path).dataloader_num_workers == 1
    assert args.output_dir == str(tmp_path) and args.num_train_epochs == 1
