"""The strict loader: YAML and command line follow the same rules, and all errors are reported at once."""

import dataclasses
import enum
import json
from pathlib import Path

import pytest
import torch
import yaml
from support import REPO, load_recipe_script
from transformers import TrainingArguments

from ftkit.config import DataArguments, MethodArguments, ModelArguments
from ftkit.config.configuration import Config
from ftkit.errors import ConfigError, UserError, user_errors
from ftkit.owners import parse_config

RECIPES = REPO / "recipes"


@pytest.fixture(autouse=True)
def no_data_at_hand(monkeypatch, tmp_path):
    """An empty working folder, and no datasets of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FTKIT_DATA_DIR", raising=False)
    monkeypatch.delenv("FTKIT_DEBUG", raising=False)


@pytest.fixture
def recipe(tmp_path):
    """Parse a recipe's text, with `dataset: digits` under it unless it names its own data."""

    def parse(text: str, *arguments: str) -> Config:
        path = tmp_path / "recipe.yaml"
        path.write_text(text if "dataset:" in text or "data_dir:" in text else f"{text}\ndataset: digits\n")
        return parse_config(["--config", str(path), *arguments])

    return parse


@pytest.fixture(params=["yaml", "command line"])
def given(request, recipe):
    """Give a key a value in YAML, or on the command line."""

    def parse(key: str, value: str) -> Config:
        if request.param == "yaml":
            return recipe(f"{key}: {value}")
        return parse_config(["--dataset", "digits", f"--{key}", *value.strip("[]").split(", ")])

    return parse


def errors_of(parse, *arguments, **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(*arguments, **options)
    return caught.value.errors


# --- where settings come from


@pytest.mark.parametrize("selector", [["--config", "recipe.yaml"], ["--config=recipe.yaml"]])
@pytest.mark.parametrize(
    "override", [["--learning_rate", "0.5"], ["--learning_rate=0.5"], ["--learning-rate", "5e-1"]]
)
@pytest.mark.parametrize("recipe_first", [True, False])
def test_the_command_line_overrides_the_recipe(recipe, selector, override, recipe_first):
    recipe("learning_rate: 0.1\nweight_decay: 0.25")
    config = parse_config(selector + override if recipe_first else override + selector)
    assert (config.training.learning_rate, config.training.weight_decay) == (0.5, 0.25)


def test_the_last_value_on_the_command_line_wins(recipe):
    assert recipe("seed: 1", "--seed", "2", "--seed", "3").training.seed == 3


def test_flags_need_no_value(recipe):
    config = recipe("trust_remote_code: true", "--overwrite", "--trust_remote_code", "false")
    assert config.job.overwrite is True
    assert config.model.trust_remote_code is False


@pytest.mark.parametrize(
    "arguments, source, model, rate",
    [
        ([], ("digits", None), "mlp", 0.125),
        (["--weight_decay", "0.5"], ("digits", None), "mlp", 0.125),
        (["--test_size", "0.3"], ("digits", None), "mlp", 0.125),
        (["--model", "mlp"], ("digits", None), "mlp", 1e-3),
        (["--model=timm/test_vit", "--method=full"], ("digits", None), "timm/test_vit", 1e-4),
        (["--data_dir", "photos"], (None, "photos"), "convnet", 1e-3),
        (["--data-dir=photos"], (None, "photos"), "convnet", 1e-3),
        (["--dataset", "digits"], ("digits", None), "convnet", 1e-3),
        (["--dataset", "mnist", "--data_dir", "photos"], ("mnist", "photos"), "convnet", 1e-3),
        (["--data_dir", "photos", "--model", "rnn"], (None, "photos"), "rnn", 1e-3),
        (["--data_dir", "photos", "--learning_rate", "0.5"], (None, "photos"), "convnet", 0.5),
    ],
)
def test_hyperparameters_of_the_default_recipe_are_for_its_own_data_and_model(
    tmp_path, arguments, source, model, rate
):
    default = tmp_path / "default.yaml"
    default.write_text(
        "dataset: digits\nvalidation_size: 0.25\nmodel: mlp\nmodel_args: {hidden_sizes: [7]}\nlearning_rate: 0.125\n"
        "label_smoothing_factor: 0.1\naugment: [flip]\n"
    )
    config, own = parse_config(arguments, default), rate == 0.125
    data_dir = config.data.data_dir and Path(config.data.data_dir)
    assert (config.data.dataset, data_dir) == (source[0], source[1] and tmp_path / source[1])
    assert (config.model.model, config.training.learning_rate) == (model, rate)
    assert config.training.label_smoothing_factor == (0.1 if own else 0)
    assert (config.model.model_args, config.data.augment) == (
        ({"hidden_sizes": [7]}, ["flip"]) if own else (None,) * 2
    )
    kept = own or arguments[0].startswith("--model")
    assert config.data.validation_size == (0.25 if kept else 0.1)


def test_a_recipe_that_is_named_holds_for_other_data_and_models(recipe):
    config = recipe("dataset: digits\nmodel: mlp\nlearning_rate: 0.125", "--model", "rnn", "--dataset", "mnist")
    assert (config.data.dataset, config.model.model, config.training.learning_rate) == ("mnist", "rnn", 0.125)


@pytest.mark.parametrize(
    "recipes, options, source",
    [
        ("dataset: digits", ["--data_dir", "photos"], (None, "photos")),
        ("dataset: mnist", ["--data_dir", "photos"], (None, "photos")),
        ("dataset: mnist\ndata_dir: old", ["--data_dir", "fashion_mnist"], (None, "fashion_mnist")),
        ("dataset: cifar10", ["--data_dir", "cifar-100-python"], (None, "cifar-100-python")),
        ("dataset: me/pets\ndataset_config: big", ["--data_dir", "photos"], (None, "photos")),
        ("dataset: mnist", ["--data_dir", "copies/MNIST/raw"], ("mnist", "copies/MNIST/raw")),
        ("dataset: cifar10", ["--data_dir", "cifar-10-batches-py"], ("cifar10", "cifar-10-batches-py")),
        ("dataset: fashion_mnist", ["--data_dir", "FashionMNIST"], ("fashion_mnist", "FashionMNIST")),
        ("dataset: mnist", ["--data_dir", "photos", "--dataset", "mnist"], ("mnist", "photos")),
        ("data_dir: photos", ["--dataset", "mnist"], ("mnist", None)),
        ("dataset: mnist\ndata_dir: mine", ["--dataset", "cifar10"], ("cifar10", None)),
        ("dataset: mnist\ndata_dir: mine", ["--dataset", "mnist"], ("mnist", "mine")),
    ],
)
def test_data_of_the_command_line_replace_those_of_the_recipe(recipe, tmp_path, recipes, options, source):
    data = recipe(f"{recipes}\nmax_train_samples: 9", *options).data
    assert (data.dataset, data.data_dir) == (source[0], source[1] and str(tmp_path / source[1]))
    assert data.dataset_config is None and data.max_train_samples == 9


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "learning_rate 0.001 (the method's), 3 epochs, batches of 8, the checkpoint with the best accuracy"),
        (["--learning_rate", "0.5", "--max_steps", "7"], "batches of 8, the checkpoint with the best accuracy"),
        (["--eval_strategy", "no"], "learning_rate 0.001 (the method's), 3 epochs, batches of 8"),
        (
            ["--learning_rate=0.5", "--num_train_epochs=1", "--per_device_train_batch_size=4", "--eval_strategy=no"],
            "",
        ),
    ],
)
def test_the_defaults_in_use_are_named(arguments, said):
    assert parse_config(["--dataset", "digits", *arguments]).defaults() == said


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_parses(path):
    config = parse_config(["--config", str(path)])
    assert config.data.dataset or config.data.data_dir


@pytest.mark.parametrize(
    "dataset, found", [("mnist", True), ("owner/name", True), ("cifar10", False), ("digits", False)]
)
def test_short_names_are_looked_up_in_the_shared_folder(tmp_path, monkeypatch, dataset, found):
    for name in ("mnist", "owner/name", "digits", "other"):
        (tmp_path / "shared" / name).mkdir(parents=True)
    monkeypatch.setenv("FTKIT_DATA_DIR", "shared")
    data = parse_config(["--dataset", dataset]).data
    assert data.data_dir == (str(tmp_path / "shared" / dataset) if found else None)
    if dataset != "digits":
        assert parse_config(["--dataset", dataset, "--data_dir", "mine"]).data.data_dir == str(tmp_path / "mine")


def test_folders_of_images_are_kept_absolute(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for image_dir, place in (("~/pictures", "home/pictures"), ("pictures", "pictures")):
        data = recipe(f"data_dir: list.csv\nimage_dir: {image_dir}").data
        assert (data.data_dir, data.image_dir) == (str(tmp_path / "list.csv"), str(tmp_path / place))


def test_parsing_writes_nothing(tmp_path):
    parse_config(["--dataset", "digits"])
    assert list(tmp_path.iterdir()) == []


# --- what the values mean


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("eval_strategy", "no", "no"),
        ("eval_strategy", "off", None),  # YAML's other word for false is not a choice
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", "1.e-3", 0.001),
        ("num_train_epochs", "2", 2.0),
        ("seed", "007", 7),
        ("seed", "1_000", 1000),
        ("output_dir", "007", "007"),
        ("output_dir", "1e-3", "1e-3"),
        ("hub_model_id", "2024-01-01", "2024-01-01"),
        ("bf16", "no", False),
        ("overwrite", "yes", True),
        ("classes", "[01, 1e3, no, 2024-01-01]", ["01", "1e3", "no", "2024-01-01"]),
        ("image_size", "28", [28]),
        ("image_size", "[28, 30]", [28, 30]),
        ("hub_revision", "1.10", "1.10"),
        ("warmup_steps", "0.1", 0.1),
    ],
)
def test_values_keep_their_written_meaning(given, key, text, value):
    if value is None:
        assert key in errors_of(given, key, text)[0]
        return
    config = given(key, text)
    groups = (config.data, config.model, config.job, config.training)
    got = next(getattr(group, key) for group in groups if hasattr(group, key))
    assert got == value
    assert isinstance(got, type(value))


def test_null_means_the_default(recipe):
    config = recipe("max_train_samples: null\nlearning_rate: ~\nimage_column:\nvalidation_size: null")
    assert (config.data, config.training.learning_rate) == (DataArguments(dataset="digits"), 1e-3)


def test_null_is_none_for_keys_that_may_be_none(recipe, tmp_path):
    """`save_total_limit: null` keeps all checkpoints, in a stage and in a saved recipe too."""
    text = "save_total_limit: null\nmetric_for_best_model: ~\nstages: [{train: head}, {train: all, data_seed: null}]"
    config = recipe(text + "\ndata_seed: 3")
    for again in (config, recipe(config.to_yaml())):
        assert again.training.save_total_limit is None
        assert (again.training.metric_for_best_model, again.training.greater_is_better) == ("loss", False)
        stages = [again.of_stage(stage, tmp_path) for stage in ({}, {"data_seed": None}, {"save_total_limit": 2})]
        assert [args.data_seed for args in stages] == [3, None, 3]
        assert [args.save_total_limit for args in stages] == [None, None, 2]


@pytest.mark.parametrize(
    "text, value",
    [
        ("model_args: {hidden_sizes: [64, 32], activation: gelu}", {"hidden_sizes": [64, 32], "activation": "gelu"}),
        ("model_args:\n  hidden_sizes:\n  - 64\n", {"hidden_sizes": [64]}),
        ("model_args: '{\"hidden_sizes\": [64]}'", {"hidden_sizes": [64]}),
        ("model_args: {dropout: 1e-3}", {"dropout": 0.001}),
        ("model_args: {}", {}),
        ("model_args: null", None),
    ],
)
def test_model_args_are_a_mapping(recipe, text, value):
    assert recipe(text).model.model_args == value


def test_model_args_from_the_command_line():
    config = parse_config(["--dataset", "digits", "--model_args", '{"hidden_sizes": [8], "bias": false}'])
    assert config.model.model_args == {"hidden_sizes": [8], "bias": False}


def _written(value):
    """A default of `TrainingArguments` as it would stand in a recipe."""
    return value.value if isinstance(value, enum.Enum) else value


def test_every_key_of_training_arguments_works_by_its_own_name(recipe):
    plain = TrainingArguments(output_dir="out", use_cpu=not torch.accelerator.is_available())
    keys = [field for field in dataclasses.fields(TrainingArguments) if field.init]
    written = {f.name: _written(f.default) for f in keys if isinstance(_written(f.default), bool | int | float | str)}
    del written["debug"]  # its default is an empty text, which is none of its own choices
    assert len(written) > 60
    config = recipe(yaml.safe_dump(written | {"output_dir": "out", "use_cpu": plain.use_cpu}))
    assert {name: getattr(config.training, name) for name in written} == {
        name: getattr(plain, name) for name in written
    }
    wrong = errors_of(recipe, yaml.safe_dump({f.name: "bad-value" for f in keys}))
    assert not [error for error in wrong if "there is no such key" in error]
    typed = [name for name, value in written.items() if isinstance(value, bool | int | float)]
    assert [name for name in typed if not any(f": {name}: 'bad-value'" in error for error in wrong)] == []


# --- mistakes


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("learning_rate", "fast", ["'fast'", "number"]),
        ("learning_rate", "[0.1, 0.2]", ["one value, not 2"]),
        ("seed", "1.5", ["'1.5'", "whole number"]),
        ("bf16", "maybe", ["'maybe'", "true or false"]),
        ("method", "ful", ["'ful'", "did you mean 'full'"]),
        ("on_bad_image", "ignore", ["'ignore'", "error, skip"]),
        ("lr_scheduler_type", "cosin", ["'cosin'", "did you mean 'cosine'"]),
        ("optim", "adamw_torchh", ["'adamw_torch'"]),
        ("eval_strategy", "epochs", ["'epoch'"]),
        ("image_size", "[28, wide]", ["'wide'", "whole number"]),
        ("lerning_rate", "0.1", ["no such key", "'learning_rate'"]),
        ("learn", "0.1", ["no such key"]),
        ("learning_rat", "0.1", ["no such key", "'learning_rate'"]),
        ("sample_per_class", "5", ["no such key", "'samples_per_class'"]),
        ("help_me", "1", ["no such key"]),
    ],
)
def test_keys_types_and_choices_are_checked_in_yaml_and_on_the_command_line(given, key, value, words):
    (error,) = errors_of(given, key, value)
    assert all(word in error for word in [f"{key}:", *words]), error


def test_null_of_a_number_on_the_command_line(recipe):
    """The refusal of `--save_total_limit 0` advises null; a class of that name stays one."""
    config = recipe("dataset: digits", "--save_total_limit", "null", "--classes", "null", "1")
    assert config.training.save_total_limit is None
    assert config.data.classes == ["null", "1"]


@pytest.mark.parametrize(
    "text", ["eval_steps: 3", "save_steps: 3", "stages: [{train: head, eval_steps: 3}]"], ids=["eval", "save", "stage"]
)
def test_steps_without_their_strategy_are_refused(recipe, text):
    with pytest.raises(ConfigError, match=r"_steps: 3(\.0)? has no effect without eval_strategy: steps"):
        recipe(f"eval_strategy: epoch\n{text}")
    recipe(f"eval_strategy: steps\n{text}\nsave_strategy: steps\nlogging_steps: 3")


def test_eval_steps_imply_their_strategy(recipe):
    args = recipe("eval_steps: 3").training
    assert (args.eval_strategy, args.save_strategy, args.eval_steps, args.save_steps) == ("steps", "steps", 3, 3)


def test_the_command_line_switches_off_a_recipes_save_steps(recipe):
    config = recipe("eval_strategy: no\nsave_strategy: steps\nsave_steps: 1", "--save_strategy", "no")
    assert config.training.save_strategy == "no"


@pytest.mark.parametrize("text", ["lerning_rate:", "lerning_rate: null", "lerning_rate: ~"])
def test_a_misspelt_key_without_a_value_is_an_error(recipe, text):
    assert "'learning_rate'" in errors_of(recipe, text)[0]


@pytest.mark.parametrize("value", ["hidden_sizes=[64]", "{hidden_sizes", "5", '"text"'])
def test_model_args_that_are_no_mapping_are_named(value):
    (error,) = errors_of(parse_config, ["--dataset", "digits", "--model_args", value])
    assert "model_args" in error


def test_all_errors_are_listed_at_once(recipe):
    text = """
        lerning_rate: 0.1       # unknown
        seed: many              # a wrong type
        method: ful             # not a choice
        validation_size: 1.5    # out of range
        model_args: [1, 2]      # not a mapping
        max_train_samples: 10
        samples_per_class: 5    # contradicts the line before
    """
    with pytest.raises(ConfigError) as caught:
        recipe("\n".join(line.strip() for line in text.splitlines()), "--weight_decay", "-1", "--bogus")
    words = ["recipe.yaml:2: lerning_rate", "recipe.yaml:3: seed", "method: 'ful'", "validation_size: 1.5"]
    words += ["model_args", "max_train_samples and samples_per_class", "weight_decay: -1", "command line: bogus"]
    assert len(caught.value.errors) == len(words)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_name_is_checked_by_its_owner_at_once(recipe):
    text = "model: convnett\nmethod: lorra\naugment: [flipp]\noptim: adamww\nreport_to: tensorbord"
    transform = "data_engine: stream\nimage_transform: {hflipp: 1}"
    errors = errors_of(recipe, f"{text}\n{transform}\nseed: many")
    words = ["'many'", "'flipp'", "'hflipp'", "'convnett'", "'lorra'", "'adamww'", "'tensorbord'"]
    assert len(errors) == len(words) and all(word in str(errors) for word in words), errors
    stages = '[{"train": "head"}, {"train": "all", "optim": "adamww", "weight_decay": -1}]'
    errors = errors_of(recipe, "seed: 1", "--stages", stages)
    assert len(errors) == 2 and all(error.startswith("stages[1]: ") for error in errors), errors


def test_duplicate_keys_are_listed_with_the_other_errors(recipe):
    errors = errors_of(recipe, "seed: 1\nlearning_rate: 0.1\nseed: 2")
    assert len(errors) == 1
    assert "recipe.yaml:3: seed" in errors[0]
    assert len(errors_of(recipe, "seed: 1\nlerning_rate: 0.1\nseed: 2")) == 2


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("---\n", "scalar"),
        ("- learning_rate: 0.1\n", "sequence"),
        ("learning_rate 0.1\n", "scalar"),
        ("null\n", "scalar"),
        ("learning_rate: [0.1\n", "not valid YAML"),
        ("a: b: c\n", "not valid YAML"),
        ("\tseed: 1\n", "not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "not valid YAML"),
        ("seed: 1\n{{ more }}: 2\n", "recipe.yaml:2"),
        ("model_args: {since: 2024-01-01}\ndataset: digits\n", "model_args"),
        ("seed: \xff\xfe\n", "recipe.yaml"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, refused, text, word):
    (tmp_path / "recipe.yaml").write_bytes(text.encode("latin-1"))
    with refused("recipe.yaml", word):
        parse_config(["--config", "recipe.yaml", "--dataset", "digits"])


@pytest.mark.parametrize("arguments", [["--config"], ["--config", "none.yaml"], ["--config", "."], ["recipe.yaml"]])
def test_a_recipe_that_cannot_be_read(arguments):
    with pytest.raises(UserError, match=r"config|recipe\.yaml"):
        parse_config(arguments)


CONTRADICTIONS = [
    # DataArguments
    ({"validation_size": 0}, "validation_size: 0"),
    ({"test_size": 1.0}, "test_size: 1.0"),
    ({"test_size": "nan"}, "test_size: nan"),
    ({"validation_size": 0.5, "test_size": 0.5}, "sum must be under 1"),
    ({"max_train_samples": 0}, "max_train_samples: 0"),
    ({"samples_per_class": -1}, "samples_per_class: -1"),
    ({"samples_per_class": 5, "max_train_samples": 50}, "contradict"),
    ({"data_dir": "photos"}, "digits is embedded"),
    ({"classes": ["1"]}, "classes"),
    ({"classes": ["1", "2", "1"]}, "classes"),
    ({"test_split": "here", "validation_split": "here"}, "must differ"),
    ({"split_seed": -1}, "split_seed: -1"),
    # ModelArguments
    ({"dropout": 1.0}, "dropout: 1.0"),
    ({"image_size": [1, 2, 3]}, "image_size"),
    ({"image_size": 0}, "image_size"),
    ({"image_mean": 0.5}, "image_mean and image_std belong together"),
    ({"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}, "image_mean"),
    ({"image_mean": 0.5, "image_std": 0}, "image_std"),
    # MethodArguments, and keys of different groups
    ({"early_stopping_patience": 0}, "early_stopping_patience: 0"),
    ({"early_stopping_patience": 2, "load_best_model_at_end": False}, "load_best_model_at_end"),
    ({"early_stopping_patience": 2, "eval_strategy": "no"}, "eval_strategy"),
    ({"method": "full", "model": "convnet"}, "method: full"),
    # TrainingArguments, ftkit's ranges and its own
    ({"learning_rate": -0.1}, "learning_rate: -0.1"),
    ({"learning_rate": "nan"}, "learning_rate: nan"),
    ({"num_train_epochs": 0}, "num_train_epochs: 0"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: 0"),
    ({"label_smoothing_factor": 1.0}, "label_smoothing_factor: 1.0"),
    ({"hub_token": "hf_secret"}, "hub_token"),
    ({"seed": -1}, "seed: -1"),
    ({"save_strategy": "steps"}, "save"),
    ({"eval_strategy": "steps", "eval_steps": 10, "save_steps": 15}, "multiple"),
    ({"bf16": True, "fp16": True}, "fp16"),
    ({"method": "adalora", "model": "timm/test_vit", "ema_decay": 0.9}, "ema_decay: 0.9 brings back ranks"),
    ({"lr_scheduler_kwargs": "fast"}, "lr_scheduler_kwargs"),
    ({"metric_for_best_model": ""}, "metric_for_best_model: ''"),
]


@pytest.mark.parametrize(
    "values, word", CONTRADICTIONS, ids=lambda case: " ".join(case) if isinstance(case, dict) else ""
)
def test_contradictions_and_values_out_of_range_are_refused(recipe, values, word):
    errors = errors_of(recipe, yaml.safe_dump({"dataset": "digits"} | values))
    assert any(word in error for error in errors), errors


def test_missing_data_are_refused(refused):
    with refused("dataset", "data_dir"):
        parse_config(["--model", "mlp"])


def test_fp16_needs_a_gpu(recipe, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert "fp16" in errors_of(recipe, "fp16: true")[0]


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_one_message_and_exit_code_2(capsys, monkeypatch, debug):
    if debug:
        monkeypatch.setenv("FTKIT_DEBUG", "1")
    with pytest.raises(SystemExit) as caught, user_errors():
        parse_config(["--config", "none.yaml"])
    shown = capsys.readouterr().err
    assert caught.value.code == 2
    assert "error: --config none.yaml" in shown
    assert ("Traceback" in shown) == debug


def test_the_first_of_several_processes_prints_the_error(capsys, monkeypatch, tmp_path):
    """The launcher ends the others when the first exits: they wait for that before they print it themselves."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
        with pytest.raises(SystemExit), user_errors():
            parse_config(["--lerning_rate", "1"])
        assert len(waited) == int(rank) and "learning_rate" in capsys.readouterr().err
        assert "learning_rate" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]


def test_a_process_that_loses_another_has_no_traceback_of_its_own(capsys):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:397.")
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and "another process of this run has ended" in shown and "Traceback" not in shown


def test_a_bug_of_all_processes_is_shown_by_the_first(monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ZeroDivisionError), user_errors():
            raise ZeroDivisionError
        assert len(waited) == int(rank)


def test_a_script_for_one_process_refuses_several(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("predict.py works in one process", "python recipes/predict.py"):
        load_recipe_script("predict").main(["--model", "x", "y"])


@pytest.mark.parametrize("launcher", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(monkeypatch, refused, launcher):
    monkeypatch.setenv(launcher, "true")
    words = ["--dataset", "digits", "--ema_decay", "0.9", "--l1", "1e-4", "--on_nan", "rollback"]
    with refused(
        "ema_decay: 0.9 needs unsharded weights", "l1: 0.0001 needs", "on_nan: rollback needs", "multi_gpu.yaml"
    ):
        parse_config(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--report_to", "tensorbord"], ["report_to: 'tensorbord' is not one of", "did you mean 'tensorboard'"]),
        (["--report_to", "clearml"], ["report_to: clearml is not installed"]),
        (["--save_on_each_node", "true"], ["save_on_each_node", "all machines share output_dir"]),
    ],
)
def test_trackers_and_folders(refused, words, told):
    with refused(*told):
        parse_config(["--dataset", "digits", *words])


def test_help_lists_the_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"])
    assert not caught.value.code
    shown = capsys.readouterr().out
    assert all(f"--{key}" in shown for key in ["samples_per_class", "image_size", "learning_rate", "overwrite"])
    names = shown.partition("Names that keys take")[2]
    assert all(name in names for name in ["convnet", "random_crop", "trivial_augment", "lp_ft", "rslora"])


# --- the saved configuration


ROUND_TRIPS = [
    {"dataset": "digits"},
    {"dataset": "digits", "classes": ["01", "1e3", "no", "null", "~", "ä b", "2024-01-01", "-1", "-a"]},
    {"dataset": "digits", "model_args": {"hidden_sizes": [8, 4], "eps": 1e-7, "on": True, "name": "no"}},
    {"dataset": "digits", "image_size": [28, 30], "image_mean": [-1e-5, 0.5, 1.0], "image_std": [1e-3, 1.0, 1.0]},
    {"dataset": "digits", "learning_rate": 3e-5, "warmup_steps": 0.1, "seed": 7, "optim": "sgd", "bf16": True},
    {"dataset": "digits", "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "epoch"},
    {"dataset": "digits", "eval_strategy": "steps", "eval_steps": 25, "early_stopping_patience": 3},
    {"dataset": "digits", "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
    {"data_dir": "a folder", "validation_size": 0.25, "model": "timm/resnet18", "method": "full", "dropout": 0.0},
    {"dataset": "owner/name", "revision": "1.10", "dataset_revision": "007", "output_dir": "runs/no"},
]


def _contents(config: Config) -> dict:
    groups = (config.data, config.model, config.method, config.loss, config.training)
    return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


@pytest.mark.parametrize("values", ROUND_TRIPS, ids=lambda values: " ".join(values))
def test_a_saved_configuration_reads_back_equal(recipe, tmp_path, monkeypatch, values):
    config = recipe(yaml.safe_dump(values))
    saved = tmp_path / "saved.yaml"
    saved.write_text(config.to_yaml(), encoding="utf-8")
    monkeypatch.chdir("/")  # it means the same from anywhere
    again = parse_config(["--config", str(saved)])
    assert _contents(again) == _contents(config)
    assert yaml.safe_load(again.to_yaml()) == yaml.safe_load(config.to_yaml())
    for key, value in values.items():
        if key not in ("data_dir", "image_size"):
            assert _written(_contents(again)[key]) == value


@pytest.mark.parametrize(
    "text",
    [
        "report_to: none",
        "report_to: [tensorboard]",
        "accelerator_config: {non_blocking: true, gradient_accumulation_kwargs: {sync_each_batch: true}}",
        "gradient_checkpointing: true\ngradient_checkpointing_kwargs: {every_n_layers: 2}",
        "push_to_hub: true\nhub_model_id: me/model",
        "optim: timm/lamb\noptim_args: betas=(0.9, 0.95)",
        "save_total_limit: null\nmetric_for_best_model: null",
        "eval_steps: 4\nsave_steps: 8",
        "logging_steps: 7\neval_strategy: steps",
        "do_eval: false",
    ],
)
def test_values_that_transformers_resolves_survive_saving(recipe, text):
    config = recipe(text)
    again = recipe(config.to_yaml())
    assert again.training.to_dict() == config.training.to_dict()
    assert (again.to_yaml(), again.pushes) == (config.to_yaml(), "push_to_hub" in text)


def test_how_a_run_was_started_is_not_saved(recipe):
    saved = yaml.safe_load(recipe("seed: 3", "--overwrite", "--resume_from_checkpoint", "true").to_yaml())
    assert {"overwrite", "resume_from_checkpoint", "use_cpu", "disable_tqdm"}.isdisjoint(saved)
    assert saved["seed"] == 3


def test_defaults_of_the_dataclasses_hold():
    config = parse_config(["--dataset", "digits"])
    assert config.data == DataArguments(dataset="digits")
    assert (config.model, config.method) == (ModelArguments(), MethodArguments())


@pytest.mark.parametrize(
    ("method", "rate"), [("scratch", 1e-3), ("full", 1e-4), ("linear_probe", 1e-2), ("lora", 1e-3)]
)
def test_each_method_has_its_own_learning_rate(method, rate, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    arguments = ["--dataset", "digits", "--model", str(tmp_path if method != "scratch" else "mlp"), "--method", method]
    assert parse_config(arguments).training.learning_rate == rate
    given = parse_config([*arguments, "--learning_rate", "0.5"])
    assert given.training.learning_rate == 0.5 and "learning_rate: 0.5" in given.to_yaml()
