"""The errors in a method are found before anything is loaded, all at once."""

import dataclasses

import pytest

from ftkit.config import MethodArguments
from ftkit.methods.checks import check
from ftkit.owners import parse_config


@pytest.fixture(scope="module")
def config():
    return parse_config(["--dataset", "digits", "--model", "mlp"])


@pytest.fixture(scope="module")
def wrong(config):
    """`wrong(method=…, …)`: the errors of a method for a model with trained weights."""
    model = dataclasses.replace(config.model, model="timm/test_vit")

    def find(**method):
        return check(dataclasses.replace(config, model=model, method=MethodArguments(**method)))

    return find


@pytest.mark.parametrize(
    "method",
    [{"method": "scratch"}, {"method": "lp_ft"}, {"method": "surgical", "surgical_groups": ["stem"]},
     {"method": "full", "stages": [{"train": {"last": 1}}, {"train": ["stem"]}]},
     {"method": "lora", "adapter_args": {"r": 4}, "merge_adapters": True},
     {"method": "lora", "stages": [{"train": "head"}, {"train": "adapters"}]}, {"method": "dora"}],
    ids=str,
)  # fmt: skip
def test_valid_methods_are_accepted(wrong, method):
    assert wrong(**method) == []


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"method": "lorra"}, ["method: 'lorra' is unknown (did you mean", "expected scratch, full, linear_probe"]),
        ({"method": "surgical"}, ["surgical_groups is missing"]),
        ({"method": "full", "surgical_groups": ["stem"]}, ["surgical_groups has no effect with method: full"]),
        (
            {"method": "full", "adapter_args": {"r": 4}},
            ["adapter_args has no effect with method: full", "method: lora"],
        ),
        ({"method": "full", "merge_adapters": True}, ["merge_adapters has no effect with method: full"]),
        (
            {"method": "lp_ft", "stages": [{"train": "all"}]},
            ["stages and method: lp_ft contradict", "scratch or full"],
        ),
        ({"method": "full", "stages": [{"train": "all"}, {"train": "heads"}]}, ["stages[1].train: 'heads' is not"]),
        ({"method": "full", "stages": [{"train": "adapters"}]}, ["stages[0].train: adapters needs a method"]),
        ({"method": "lora", "stages": [{"train": "all"}]}, ["stages[0].train: 'all' would not be saved"]),
        ({"method": "lora", "adapter_args": {"rank": 4}}, ["lora has no option 'rank'"]),
        ({"method": "lora", "adapter_args": {"r": "four"}}, ["r: 'four' is not a number"]),
        ({"method": "lora", "adapter_args": {"task_type": "SEQ_CLS"}}, ["task_type is not for image classifiers"]),
        ({"method": "lora", "adapter_args": {"modules_to_save": "head"}}, ["'head' is not a list of names"]),
        (
            {"method": "lora", "adapter_args": {"layers_pattern": "blocks"}},
            ["layers_pattern chooses among target_modules"],
        ),
        ({"method": "lora", "adapter_args": {"init_lora_weights": "pissa_niter_4"}}, ["pissa_niter_4 is random"]),
        ({"method": "lora", "train_batchnorm_stats": True}, ["train_batchnorm_stats: true would move statistics"]),
    ],
    ids=str,
)
def test_an_error_is_one_sentence(wrong, method, words):
    (error,) = wrong(**method)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "method",
    [{"method": "full", "stages": "head"}, {"method": "full", "stages": ["head", {"learning_rate": 0.1}]},
     {"method": "lora", "adapter_args": [8]}, {"method": "lora", "adapter_args": "r"}],
    ids=str,
)  # fmt: skip
def test_wrong_forms_are_left_to_the_configuration(wrong, method):
    assert wrong(**method) == [] != MethodArguments(**method).check()


def test_all_errors_are_found_at_once(wrong):
    method = {"method": "lora", "adapter_args": {"rank": 4}, "surgical_groups": ["stem"], "stages": [{"train": "all"}]}
    assert len(wrong(**method)) == 3


def test_a_method_needs_the_weights_that_it_starts_from(config, tmp_path):
    def errors(method, model, **options):
        other = dataclasses.replace(config.model, model=model)
        return check(dataclasses.replace(config, model=other, method=MethodArguments(method, **options)))

    (tmp_path / "weights.pt").touch()
    file = str(tmp_path / "weights.pt")
    (error,) = errors("full", "convnet")
    assert "starts from trained weights, and model: convnet has none" in error
    (error,) = errors("scratch", file)
    assert "starts from random weights" in error
    (error,) = errors("lora", file)
    assert "merge_adapters: an adapter cannot name" in error
    assert errors("lora", file, merge_adapters=True) == errors("full", file) == []


def test_adalora_needs_whole_weights_that_are_not_averaged(wrong, config, monkeypatch):
    averaged = dataclasses.replace(config.loss, ema_decay=0.9)
    model = dataclasses.replace(config.model, model="timm/test_vit")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for method, count in (("adalora", 2), ("lora", 0)):
        run = dataclasses.replace(config, model=model, loss=averaged, method=MethodArguments(method))
        assert len(check(run)) == count
