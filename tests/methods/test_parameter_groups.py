"""Learning rates by layer group, what decays, and the table that shows both."""

import copy
import re
from contextlib import suppress

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from support import KEEP_LAST, train
from torch import nn

from ftkit.config import LossArguments, MethodArguments, ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.methods.adapter_kinds import LORA_VARIANTS, adapter_configs
from ftkit.methods.parameter_groups import optimizer_groups, parameter_settings
from ftkit.models.anatomy import layer_groups
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel


def build(name):
    return Classifier.build(
        ModelArguments(model=name, image_size=[32]), SingleLabel(["0", "1"]), ImageInfo((8, 8), 1), False
    ).model


def settings(model, **method):
    return parameter_settings(model, layer_groups(model), 0.1, MethodArguments("full", **method), LossArguments())


@pytest.mark.parametrize("name", ["convnet", "timm/test_resnet", "timm/test_vit"])
def test_rates_fall_from_the_head_to_the_input(name):
    model = build(name)
    groups, found = layer_groups(model), settings(model, layer_decay=0.5, head_lr_multiplier=4)
    rates = [{found[name].learning_rate for name in names} for names in groups.values()]
    expected = [0.1 * 0.5**n for n in range(len(groups) - 1, 0, -1)] + [0.4]
    assert [rate for (rate,) in rates] == pytest.approx(expected)


def test_vectors_and_position_embeddings_do_not_decay():
    model = build("timm/test_vit")
    found = settings(model)
    assert {name for name, setting in found.items() if setting.decays} == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.rpartition(".")[2] not in ("pos_embed", "cls_token", "reg_token")
    }
    everything = parameter_settings(
        model, layer_groups(model), 0.1, MethodArguments("full"), LossArguments(decay_norms_and_biases=True)
    )
    assert all(setting.decays for setting in everything.values())
    assert everything.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("method", ["full", "lora", "lp_ft"])
def test_steps_are_in_proportion_to_the_learning_rates(convnet, tmp_path, method):
    """SGD without momentum: after one step from the same weights, a parameter has moved by its rate."""
    options = ["--model", convnet, "--method", method, "--max_train_samples", 64, "--max_steps", 1, "--optim", "sgd",
               "--learning_rate", 0.01, "--warmup_steps", 0, "--weight_decay", 0]  # fmt: skip
    runs = [
        train(tmp_path / str(n), *options, *KEEP_LAST, "--save_strategy", "no", *extra).folder
        for n, extra in enumerate(([], ["--layer_decay", 0.5, "--head_lr_multiplier", 10]))
    ]
    if method != "full":
        return
    start = load_file(convnet / "model.safetensors")
    plain, scaled = (load_file(run / "model" / "model.safetensors") for run in runs)
    for name, factor in (("stem.convolution.weight", 0.5**4), ("stages.2.0.convolution.weight", 0.5)):
        torch.testing.assert_close(
            scaled[name] - start[name], factor * (plain[name] - start[name]), atol=1e-6, rtol=0.05
        )


def test_the_table_of_a_stage_shows_what_trains(convnet, tmp_path, logged):
    stages = '[{"train": {"last": 1}}, {"train": "norm"}]'
    train(tmp_path / "run", "--model", convnet, "--method", "full", "--stages", stages, "--max_train_samples", 64,
          "--num_train_epochs", 1, "--learning_rate", 0.1, "--weight_decay", 0.5, "--layer_decay", 0.5)  # fmt: skip
    shown = logged()
    rows = [line.split() for line in shown.splitlines()]
    assert ["stages.1", "52,128", "frozen"] in rows
    assert ["stages.2", "207,936", "207,936", "0.05", "0.5"] in rows
    assert ["classifier", "970", "970", "0.1", "0.5"] in rows
    assert ["stem", "264", "48", "0.00625", "0"] in rows
    assert re.search(r"stage 0, last-1: 208,906 of 266,530 parameters train", shown)


def test_a_plan_that_trains_only_the_head_is_logged(mlp, tmp_path, logged):
    train(tmp_path / "run", "--model", mlp, "--method", "norm_tuning", "--max_train_samples", 64, "--max_steps", 1)
    assert "the model has no norm before its head, so only the head trains" in logged()


def test_adapters_of_rank_1_decay():
    model = get_peft_model(build("convnet"), LoraConfig(r=1, target_modules=["convolution"]))
    groups = {"all": [name for name, _ in model.named_parameters()]}
    found = parameter_settings(model, groups, 0.1, MethodArguments("lora"), LossArguments())
    assert all(setting.decays for name, setting in found.items() if ".lora_" in name)


def adapters():
    """A small model with an adapter method, with default options or some that fit, for every method."""
    fitting = {"ia3": {"feedforward_modules": []}, "adalora": {"total_step": 10}, "c3a": {"block_size": 8},
               "miss": {"r": 4}, "psoft": {"r": 4}, "road": {"group_size": 4}, "shira": {"r": 2},
               "fourierft": {"n_frequency": 20}, "waveft": {"n_frequency": 20},
               "vblora": {"vector_length": 8, "num_vectors": 8}}  # fmt: skip
    layers = {
        "linear": (nn.Linear(16, 24), torch.randn(4, 16)),
        "convolution": (nn.Conv2d(8, 12, 3), torch.randn(2, 8, 6, 6)),
        "norm": (nn.LayerNorm(16), torch.randn(4, 16)),
    }
    for method, make in adapter_configs().items():
        for kind, (layer, given) in layers.items():
            if (kind == "norm") != (method == "ln_tuning"):
                continue
            options = LORA_VARIANTS.get(method, {}) | fitting.get(method, {})
            with suppress(Exception):  # PEFT's tuners raise anything if they do not fit
                model = get_peft_model(nn.Sequential(copy.deepcopy(layer)), make(target_modules=["0"], **options))
                model(given)
                yield method, kind, model, given


@torch.no_grad()
def is_scale(model, given, parameter):
    """Whether the layer ignores its input if the parameter decays to zero."""
    kept = parameter.clone()
    parameter.zero_()
    left = model(given) - model(torch.zeros_like(given))
    parameter.copy_(kept)
    whole = model(given) - model(torch.zeros_like(given))
    return left.norm() < 1e-4 * whole.norm()


def test_scales_of_adapters_do_not_decay():
    """For every method, decay pulls towards the pretrained weights, not towards zero."""
    scales, decaying = set(), set()
    torch.manual_seed(0)
    for method, kind, model, given in adapters():
        groups = {"all": [name for name, _ in model.named_parameters()], "head": []}
        found = parameter_settings(model, groups, 0.1, MethodArguments(method), LossArguments())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                place = (method, kind, name.removeprefix("base_model.model.0."))
                scales |= {place} if is_scale(model, given, parameter) else set()
                decaying |= {place} if found[name].decays else set()
    own = {(method, kind, name.partition(".")[0]) for method, kind, name in scales}
    assert own >= {
        (method, kind, name)
        for method, name in (("ia3", "ia3_l"), ("boft", "boft_s"), ("dora", "lora_magnitude_vector"))
        for kind in ("linear", "convolution")
    }
    assert not scales & decaying
    methods = {method for method, *_ in decaying}
    assert {"lora", "dora", "boft", "adalora", "loha", "lokr", "hira", "hra", "oft"} <= methods, methods


def test_a_head_that_no_stage_trains_is_logged(convnet, tmp_path, logged):
    options = ["--model", convnet, "--method", "surgical", "--max_train_samples", 64, "--num_train_epochs", 1]
    train(tmp_path / "a", *options, "--surgical_groups", "stem")
    assert "no stage trains the head, classifier" in logged()
    train(tmp_path / "b", *options, "--surgical_groups", "stem", "classifier")
    assert "no stage trains the head" not in logged()


def test_muon_leaves_the_head_to_adamw():
    model = build("convnet")
    groups = optimizer_groups(model, settings(model), weight_decay=0.1, muon=True)
    told = [parameter for group in groups if group.get("use_fallback") for parameter in group["params"]]
    assert {id(parameter) for parameter in told} == {id(parameter) for parameter in model.classifier.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert not any("use_fallback" in group for group in optimizer_groups(model, settings(model), 0.1, muon=False))
