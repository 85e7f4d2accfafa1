"""Plans and stages: what a stage declares trains, and nothing else moves."""

import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from families import on_families
from safetensors.torch import load_file
from support import (
    DIGITS,
    KEEP_ALL,
    TINY,
    assert_reloads,
    assert_saved_is_trained,
    finetune,
    interrupt,
    train,
    weights,
)
from torch import nn
from transformers import AutoModelForImageClassification

from ftkit.config import MethodArguments, ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError
from ftkit.methods.freezing import only_training
from ftkit.methods.plan import METHODS, make_plan
from ftkit.methods.trainable import trained_parameters
from ftkit.models.anatomy import layer_groups
from ftkit.models.checks import OWN_MODELS
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

ONE_EPOCH = [*TINY, "--num_train_epochs", 1, "--learning_rate", 0.01]


def moved(folder, run) -> tuple[set[str], set[str]]:
    """The names of all weights and buffers except the head's, and of those that a run moved."""
    before, after = (load_file(path / "model.safetensors") for path in (folder, run / "model"))
    assert before.keys() == after.keys()
    body = {name for name in before if before[name].shape == after[name].shape}
    return body, {name for name in body if not torch.equal(before[name], after[name])}


class Moved(NamedTuple):
    """What a plan moves outside of the head.

    Attributes:
        expected: returns the names of parameters and buffers that move, from the model, the names of all outside of
            the head, and those of each layer group.
        options: of the run, from the names of the layer groups; None: `--method` and the plan's name.
        stages: the names of its stages, if they are not what is tested elsewhere.
    """

    expected: Callable[[nn.Module, set[str], list[set[str]]], set[str]]
    options: Callable[[list[str]], list[str]] | None = None
    stages: list[str] | None = None


def everything(_model, body, _groups):
    return body


def nothing(*_):
    return set()


def biases(_model, body, _groups):
    return {name for name in body if name.endswith("bias")}


def norms(model, body, _groups):
    places = {place for place, module in model.named_modules() if "Norm" in type(module).__name__}
    parameters = {name for name in body if "running_" not in name and "num_batches" not in name}
    return {name for name in parameters if name.rpartition(".")[0] in places or "norm" in name}


def one_group(number):
    """The parameters of a layer group and the running statistics beside them."""

    def expected(_model, body, groups):
        places = {name.rpartition(".")[0] for name in groups[number]}
        return {name for name in body if name in groups[number] or name.rpartition(".")[0] in places}

    return expected


# A plan for every method that starts from trained weights, and the recipe's own.
PLANS = {
    "full": Moved(everything),
    "linear_probe": Moved(nothing),
    "lp_ft": Moved(everything, stages=["head", "all"]),
    "gradual_unfreeze": Moved(everything),
    "bitfit": Moved(biases),
    "norm_tuning": Moved(norms),
    "surgical": Moved(one_group(0), lambda groups: ["--method", "surgical", "--surgical_groups", groups[0]]),
    "last": Moved(
        one_group(-2), lambda _: ["--method", "full", "--stages", '[{"train": {"last": 1}}]'], stages=["last-1"]
    ),
}


def test_every_method_has_a_plan_here():
    assert {name for name, method in METHODS.items() if method.pretrained} == PLANS.keys() - {"last"}


@pytest.mark.parametrize(
    ("plan", "folder"),
    on_families(
        PLANS,
        lambda *pair: pair[1] == "convnet" or pair in (("norm_tuning", "vit"), ("surgical", "timm/test_vit")),
    ),
    indirect=["folder"],
)
def test_exactly_what_is_declared_moves(folder, tmp_path, plan):
    moves = PLANS[plan]
    places = list(layer_groups(AutoModelForImageClassification.from_pretrained(folder)))
    options = moves.options(places) if moves.options else ["--method", plan]
    job = train(tmp_path / "run", *ONE_EPOCH, "--model", folder, *options)
    body, changed = moved(folder, job.folder)
    model = Classifier.build(ModelArguments(model=str(folder)), SingleLabel(DIGITS), ImageInfo((8, 8), 1), True).model
    groups = [set(names) for names in layer_groups(model).values()]
    assert changed == moves.expected(model, body - groups[-1], groups)
    assert moves.stages is None or [stage["stage"] for stage in job.stages] == moves.stages
    for number, stage in enumerate(job.stages):
        assert (job.folder / "stages" / f"{number}-{stage['stage']}" / "trainer_state.json").is_file()
    assert_saved_is_trained(job)


def test_a_run_of_several_stages_evaluates_the_same_from_its_saved_model(convnet, tmp_path):
    assert_reloads(finetune(tmp_path / "run", *ONE_EPOCH, "--model", convnet, "--method", "lp_ft"))


def test_statistics_of_frozen_batchnorms_move_only_on_request(convnet, tmp_path):
    options = [*ONE_EPOCH, "--model", convnet, "--method", "linear_probe"]
    body, changed = moved(convnet, train(tmp_path / "run", *options, "--train_batchnorm_stats", "true").folder)
    assert changed == {name for name in body if "running_" in name or "num_batches" in name}


def test_frozen_modules_that_move_are_named():
    model = Classifier.build(ModelArguments(model="convnet"), SingleLabel(DIGITS), ImageInfo((8, 8), 1), False).model
    trained = trained_parameters(model, layer_groups(model), "head")
    named = r"2 modules moved .* stages.1.0.convolution, stem.normalization"
    with pytest.raises(UserError, match=named), only_training(model, trained, "head", False), torch.no_grad():
        model.stages[1][0].convolution.weight += 1
        model.stem.normalization.running_mean += 1
        model.classifier.weight += 1


@pytest.mark.parametrize("name", [*OWN_MODELS, "timm/test_resnet", "timm/test_vit"])
def test_layer_groups_hold_every_parameter_once(name):
    model = Classifier.build(
        ModelArguments(model=name, image_size=[16]), SingleLabel(DIGITS), ImageInfo((8, 8), 1), False
    ).model
    groups = layer_groups(model)
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    outputs = [model.get_parameter(n) for n in list(groups.values())[-1] if n.endswith("weight")]
    assert [weight.shape[0] for weight in outputs] == [10]


def test_plans_are_lists_of_stages():
    def stages(method, **options):
        return [(s.train, s.arguments) for s in make_plan(MethodArguments(method, **options), 4, 0.1)]

    assert stages("scratch") == stages("full") == [("all", {})]
    assert stages("lp_ft") == [("head", {}), ("all", {"learning_rate": 0.01})]
    assert [train for train, _ in stages("gradual_unfreeze")] == ["head", {"last": 1}, {"last": 2}, "all"]
    assert stages("surgical", surgical_groups=["stem"]) == [(["stem"], {})]


def test_a_recipe_with_its_own_stages(convnet, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"dataset: digits\nmodel: {convnet}\nmethod: full\nmax_train_samples: 60\nstages:\n"
        "  - {name: warm, train: head, num_train_epochs: 2, learning_rate: 1e-2}\n"
        "  - {train: all, num_train_epochs: 1, lr_scheduler_type: cosine}\n"
    )
    job = train(tmp_path / "run", "--config", recipe)
    assert [(s["stage"], s["epochs"]) for s in job.stages] == [("warm", 2.0), ("all", 1.0)]
    again = train(tmp_path / "again", "--config", job.folder / "config.yaml")
    assert weights(again.folder) == weights(job.folder)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ('[{"train": "heads"}]', r"stages\[0\].train: 'heads' is not one of head, all"),
        ('[{"train": {"last": 0}}]', "not one of"),
        ('[{"learning_rate": 0.1}]', "not a mapping with `train`"),
        ('[{"train": "head", "lerning_rate": 0.1}]', r"did you mean 'learning_rate'"),
        ('[{"train": "head", "learning_rate": "fast"}]', "'fast' is not a number"),
        ('[{"train": "head", "learning_rate": -1}]', "must be at least 0"),
        ("head", "is not a list of mappings"),
        ('[{"train": "head", "name": "../../elsewhere"}]', "names a folder: use letters"),
        ("[]", "the list is empty"),
    ],
)
def test_invalid_stages_are_refused(tmp_path, stages, words):
    with pytest.raises(UserError, match=words):
        finetune(tmp_path / "run", "--stages", stages)


def test_stages_beside_a_method_with_its_own_plan_are_refused(convnet, tmp_path):
    with pytest.raises(UserError, match="stages and method: lp_ft contradict each other"):
        finetune(tmp_path / "run", "--model", convnet, "--method", "lp_ft", "--stages", '[{"train": "all"}]')


def test_a_named_checkpoint_belongs_to_its_stage(convnet, tmp_path):
    options = ["--model", convnet, "--method", "lp_ft", *TINY, *KEEP_ALL]
    whole = train(tmp_path / "whole", *options).folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part, keep=1)
    (checkpoint,) = part.glob("stages/1-all/checkpoint-*")
    train(part, *options, "--resume_from_checkpoint", checkpoint)
    assert weights(part) == weights(whole)


@pytest.mark.parametrize(
    ("train", "words"),
    [(["stemm"], "'stemm' is no layer group.*did you mean 'stem'"), ({"last": 9}, "last 9 is more than the 4 layer")],
)
def test_patterns_that_match_nothing_are_refused(train, words):
    model = Classifier.build(ModelArguments(model="convnet"), SingleLabel(DIGITS), ImageInfo((8, 8), 1), False).model
    with pytest.raises(UserError, match=words):
        trained_parameters(model, layer_groups(model), train)


def test_a_plan_that_does_not_fit_writes_nothing(convnet, tmp_path):
    options = [*ONE_EPOCH, "--model", convnet, "--method", "surgical", "--surgical_groups", "no.such.layer"]
    with pytest.raises(UserError, match=r"'no.such.layer' is no layer group"):
        finetune(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_resume_continues_in_the_right_stage(convnet, tmp_path):
    """A run that is interrupted in its second stage resumes to the same bytes."""
    options = ["--model", convnet, "--method", "lp_ft", *TINY, *KEEP_ALL]
    whole = train(tmp_path / "whole", *options).folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part)
    train(part, *options, "--resume_from_checkpoint", "true")
    assert weights(part) == weights(whole)
