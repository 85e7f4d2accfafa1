"""Plans and stages: what a stage declares trains, and nothing else moves."""

import shutil

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
from transformers import AutoModelForImageClassification

from ftkit.config import MethodArguments, ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.errors import UserError
from ftkit.methods.freezing import only_training
from ftkit.methods.plan import make_plan
from ftkit.methods.trainable import trained_parameters
from ftkit.models.anatomy import layer_groups
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

ONE_EPOCH = [*TINY, "--num_train_epochs", 1, "--learning_rate", 0.01]


def moved(folder, run) -> tuple[set[str], set[str]]:
    """The names of all weights and buffers except the head's, and of those that a run moved."""
    before, after = (load_file(path / "model.safetensors") for path in (folder, run / "model"))
    assert before.keys() == after.keys()
    body = {name for name in before if before[name].shape == after[name].shape}
    return body, {name for name in body if not torch.equal(before[name], after[name])}


PLANS = {
    "full": [],
    "linear_probe": [],
    "lp_ft": [],
    "gradual_unfreeze": [],
    "bitfit": [],
    "norm_tuning": [],
    "surgical": [],
    "last": ["--method", "full", "--stages", '[{"train": {"last": 1}}]'],
}


@pytest.mark.parametrize(
    ("plan", "folder"),
    on_families(PLANS, lambda plan, family: family == "convnet" or plan in ("norm_tuning", "surgical")),
    indirect=["folder"],
)
def test_exactly_what_is_declared_moves(folder, tmp_path, plan):
    chosen = list(layer_groups(AutoModelForImageClassification.from_pretrained(folder)))[:1]
    surgical = ["--surgical_groups", *chosen] if plan == "surgical" else []
    job = train(tmp_path / "run", *ONE_EPOCH, "--model", folder, *(PLANS[plan] or ["--method", plan]), *surgical)
    body, changed = moved(folder, job.folder)
    statistics = {name for name in body if "running_" in name or "num_batches" in name}
    parameters = body - statistics
    model = Classifier.build(ModelArguments(model=str(folder)), SingleLabel(DIGITS), ImageInfo((8, 8), 1), True).model
    groups = layer_groups(model)
    head = set(list(groups.values())[-1])
    if plan in ("full", "lp_ft", "gradual_unfreeze"):
        assert changed == body - head
    elif plan == "linear_probe":
        assert changed == set()
    elif plan == "bitfit":
        assert changed == {name for name in parameters - head if name.endswith("bias")}
    elif plan == "norm_tuning":
        norms = {place for place, module in model.named_modules() if "Norm" in type(module).__name__}
        assert changed == {n for n in parameters - head if n.rpartition(".")[0] in norms or "norm" in n}
    else:
        trained = set(list(groups.values())[0 if plan == "surgical" else -2])
        places = {name.rpartition(".")[0] for name in trained}
        assert changed - statistics == trained
        assert {name.rpartition(".")[0] for name in changed & statistics} <= places
    expected = {"lp_ft": ["head", "all"], "last": ["last-1"]}.get(plan)
    assert expected is None or [stage["stage"] for stage in job.stages] == expected
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


@pytest.mark.parametrize("name", ["mlp", "convnet", "rnn", "timm/test_resnet", "timm/test_vit"])
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
