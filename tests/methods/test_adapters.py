"""PEFT's adapters in runs: saved, merged, resumed, refused."""

import json
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from families import on_families
from peft import PeftModel
from safetensors.torch import load_file
from support import KEEP_ALL, TINY, assert_reloads, assert_saved_is_trained, finetune, interrupt, train, weights
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel, ResNetConfig
from transformers.modeling_outputs import ImageClassifierOutput

from ftkit.config import MethodArguments, ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.methods.adapter_kinds import hooks_of
from ftkit.methods.adapters import add_adapters, merged
from ftkit.models.anatomy import find_head
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel
from ftkit.training.loop.trainer import ImageTrainer

QUICK = [*TINY, "--learning_rate", 0.01]
METHODS = ["lora", "dora", "rslora", "adalora", "loha", "lokr", "ia3", "oft", "hira", "ln_tuning"]
LINEAR_ONLY = ["vera", "randlora", "delora"]
# The methods that the quick tests try on a family.
OFTEN = {"mlp": ["lora"], "convnet": ["lora", "dora", "adalora", "oft", "vera"], "timm/test_vit": ["lora"],
         "vit": ["lora", "adalora", "ia3", "oft", "vera"]}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "folder"),
    on_families(METHODS + LINEAR_ONLY, lambda method, family: method in OFTEN.get(family, [])),
    indirect=["folder"],
)
def test_only_adapters_and_head_are_saved_and_they_reload(folder, tmp_path, refused, method):
    """The untouched base and the adapter's file give the same predictions: nothing else has moved."""
    convolutional = any(name in folder.name for name in ("convnet", "resnet"))
    nothing_fits = (convolutional and method in LINEAR_ONLY) or (method, folder.name[:3]) in (
        ("ln_tuning", "mlp"),  # it has no norms
        ("oft", "con"),  # its kernels are all 3 x 3, on which PEFT's OFT does not start as the identity
    )
    if nothing_fits:
        with refused(f"method: {method}"):
            train(tmp_path / "run", *QUICK, "--model", folder, "--method", method)
        assert not (tmp_path / "run").exists()
        return
    job = train(tmp_path / "run", *QUICK, "--model", folder, "--method", method)
    assert not (job.folder / "model" / "model.safetensors").exists()
    saved = load_file(job.folder / "model" / "adapter_model.safetensors")
    (head,) = find_head(AutoModelForImageClassification.from_pretrained(folder))
    assert any(head in name for name in saved) and any(head not in name for name in saved)
    assert_saved_is_trained(job)
    assert 0 < job.plan.trained < job.classifier.model.num_parameters()
    assert job.stages[0]["best_metric"] > 0  # labels and metrics are known to the Trainer


def test_a_run_of_adapters_evaluates_the_same_from_its_folder(mlp, tmp_path):
    run = finetune(tmp_path / "run", *QUICK, "--model", mlp, "--method", "lora")
    record = json.loads((run / "run.json").read_text())
    assert 0 < record["parameters"]["trained"] < record["parameters"]["total"]
    assert_reloads(run)


@pytest.mark.parametrize(
    ("method", "folder"),
    on_families(
        ["lora", "dora", "adalora", "loha", "lokr", "ia3", "oft", "vera", "ln_tuning"],
        lambda method, family: method in ("lora", "adalora", "vera") and family in ("convnet", "vit"),
    ),
    indirect=["folder"],
)
def test_merged_adapters_are_plain_weights(folder, tmp_path, refused, method):
    arguments = [*QUICK, "--model", folder, "--method", method, "--merge_adapters", "true"]
    reason = {"vera": "No layers types compatible", "oft": "untrained, it changes"}.get(method)
    convolutional = "convnet" in folder.name or ("resnet" in folder.name and method == "vera")
    if method == "ln_tuning" and "mlp" in folder.name:
        convolutional, reason = True, "no norm layers"
    if reason and convolutional:
        with refused(f"method: {method}", reason):
            train(tmp_path / "run", *arguments)
        return
    job = train(tmp_path / "run", *arguments)
    names = [set(load_file(path / "model.safetensors")) for path in (folder, job.folder / "model")]
    assert names[0] == names[1]
    assert_saved_is_trained(job)


def test_the_adapter_folder_loads_by_pefts_own_classes(convnet, tmp_path):
    run = train(tmp_path / "run", *QUICK, "--model", convnet, "--method", "lora").folder
    base = AutoModelForImageClassification.from_pretrained(convnet, num_labels=10, ignore_mismatched_sizes=True)
    theirs, ours = PeftModel.from_pretrained(base, run / "model").eval(), Classifier.load(str(run)).model.eval()
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values=images).logits, ours(pixel_values=images).logits)


class NamesakeOfTheHead(PreTrainedModel):
    """A network with a layer of the head's name in its body."""

    config_class, main_input_name = ResNetConfig, "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.body, self.fc = nn.Sequential(OrderedDict(fc=nn.Conv2d(3, 8, 3))), nn.Linear(8, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.fc(self.body(pixel_values).mean((2, 3))))


def test_a_layer_of_the_heads_name_in_the_body_is_refused(refused):
    with refused("PEFT cannot tell the head, fc, from body.fc"):
        add_adapters(MethodArguments("lora"), NamesakeOfTheHead(ResNetConfig()), torch.randn(2, 3, 8, 8), steps=1)


def test_options_of_adapters_go_by_pefts_names(convnet, tmp_path):
    args = json.dumps({"r": 2, "target_modules": ["stem.convolution"], "lora_alpha": 5})
    run = train(tmp_path / "run", *QUICK, "--model", convnet, "--method", "lora", "--adapter_args", args).folder
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 5, ["stem.convolution"])
    assert config["modules_to_save"] == ["classifier"]
    assert config["base_model_name_or_path"] == str(convnet.resolve())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "lorra"], ["method: 'lorra' is unknown", "'lora'"]),
        (
            ["--method", "lora", "--adapter_args", '{"lora_alfa": 3}'],
            ["lora has no option 'lora_alfa'", "'lora_alpha'"],
        ),
        (["--method", "lora", "--adapter_args", "r=3"], ["not a mapping"]),
        (["--method", "lora", "--adapter_args", '{"r": 0}'], ["r", "0"]),
        (
            ["--method", "lora", "--adapter_args", '{"target_modules": ["q_proj"]}'],
            ["does not fit", "q_proj", "convolution"],
        ),
        (["--method", "lora", "--adapter_args", '{"modules_to_save": ["stemm"]}'], ["no module 'stemm'", "'stem'"]),
        (["--method", "lora", "--adapter_args", '{"r": "8"}'], ["r: '8' is not a number"]),
        (["--method", "lora", "--adapter_args", '{"modules_to_save": "stem"}'], ["'stem' is not a list of names"]),
        (["--method", "lora", "--adapter_args", '{"task_type": "SEQ_CLS"}'], ["task_type is not for image"]),
        (["--method", "lora", "--adapter_args", '{"layers_to_transform": [0]}'], ["chooses among target_modules"]),
        (["--method", "lora", "--adapter_args", '{"init_lora_weights": "pissa_niter_4"}'], ["use pissa"]),
        (["--method", "lora", "--train_batchnorm_stats", "true"], ["not saved with adapters"]),
        (["--method", "lora", "--stages", '[{"train": "all"}]'], ["would not be saved with an adapter"]),
        (["--method", "full", "--stages", '[{"train": "adapters"}]'], ["needs a method that adds them"]),
        (["--method", "full", "--merge_adapters", "true"], ["merge_adapters has no effect with method: full"]),
        (["--method", "prefix_tuning"], ["'prefix_tuning' is unknown"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_anything_is_written(convnet, tmp_path, refused, arguments, words):
    with refused(*words):
        finetune(tmp_path / "run", *QUICK, "--model", convnet, *arguments)
    assert not (tmp_path / "run").exists()


def test_head_first_then_adapters(convnet, tmp_path):
    """A recipe's own stages with an adapter: a linear probe, then LoRA from its head."""
    stages = '[{"train": "head"}, {"train": "adapters", "learning_rate": 1e-3}]'
    job = train(tmp_path / "run", *QUICK, "--model", convnet, "--method", "lora", "--stages", stages)
    trained = [stage["trained_parameters"] for stage in job.stages]
    assert trained[0] == 970 < trained[1]
    assert_saved_is_trained(job)


def test_a_run_with_adapters_resumes_to_the_same_bytes(convnet, tmp_path):
    arguments = [*QUICK, "--model", convnet, "--method", "lora", *KEEP_ALL]
    whole = train(tmp_path / "whole", *arguments).folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part)
    train(part, *arguments, "--resume_from_checkpoint", "true")
    assert weights(part, "adapter_model") == weights(whole, "adapter_model")


def test_grouped_and_depthwise_convolutions(tmp_path):
    """LoRA skips those that PEFT refuses; LoHa and IA3 take them; merging keeps the logits."""
    args = ModelArguments(model="timm/mobilenetv3_small_050", image_size=[32])
    taken = {}
    for method in ("lora", "loha", "ia3", "adalora"):
        torch.manual_seed(0)
        model = Classifier.build(args, SingleLabel(["a", "b"]), ImageInfo((32, 32), 3), pretrained=False).model
        depthwise = {name for name, module in model.named_modules() if getattr(module, "groups", 1) > 1}
        images = torch.randn(4, 3, 32, 32)
        adapted = add_adapters(MethodArguments(method, merge_adapters=True), model, images, steps=10)
        taken[method] = depthwise & set(adapted.targeted_module_names)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
            before = adapted.eval()(pixel_values=images).logits
            np.testing.assert_allclose(merged(adapted, images)(pixel_values=images).logits, before, atol=1e-4)
    assert depthwise and taken == {"lora": set(), "loha": depthwise, "ia3": depthwise, "adalora": set()}


def test_adalora_prunes_its_ranks(mlp, tmp_path):
    """The budget falls from `init_r` to `target_r`: PEFT's allocation runs at every step."""
    job = train(tmp_path / "run", *QUICK, "--num_train_epochs", 20, "--model", mlp, "--method", "adalora",
                "--eval_strategy", "no")  # fmt: skip
    values = load_file(job.folder / "model" / "adapter_model.safetensors")
    ranks = [(value != 0).sum().item() for name, value in values.items() if "lora_E" in name]
    assert sum(ranks) == 8 * len(ranks) < sum(value.numel() for name, value in values.items() if "lora_E" in name)


@pytest.mark.parametrize("method", ["unilora", "tinylora"])
def test_adapters_that_layers_share_are_not_taken_for_frozen_ones(tmp_path, mlp, method):
    assert_saved_is_trained(train(tmp_path / "run", *QUICK, "--model", mlp, "--method", method))


def test_adapters_that_cannot_be_merged_are_refused_before_training(mlp, tmp_path, refused):
    arguments = [
        "--method",
        "lily",
        "--merge_adapters",
        "true",
        "--adapter_args",
        '{"target_modules": ["layers.1.0"]}',
    ]
    with refused("merge_adapters: PEFT cannot merge these"):
        finetune(tmp_path / "run", *QUICK, "--model", mlp, *arguments)
    assert not (tmp_path / "run").exists()


def test_cached_features_depend_on_the_adapters(convnet, tmp_path):
    """An adapter's scale is not in the weights, but the cache depends on it."""
    stages, cache = '[{"train": "head"}, {"train": "adapters"}]', tmp_path / "cache"
    for alpha in (1, 4):
        args = {"init_lora_weights": False, "lora_alpha": alpha, "target_modules": ["stages.2.0.convolution"]}
        train(tmp_path / str(alpha), *QUICK, "--model", convnet, "--method", "lora", "--cache_dir", cache,
              "--stages", stages, "--adapter_args", json.dumps(args))  # fmt: skip
    assert len(list(cache.glob("features-*"))) == 4


def test_a_folder_of_adapters_is_refused_as_the_model_to_start_from(convnet, tmp_path, refused):
    run = train(tmp_path / "run", *QUICK, "--model", convnet, "--method", "lora").folder
    with refused("holds adapters, not a full model", "--merge_adapters true"):
        finetune(tmp_path / "again", *QUICK, "--model", run, "--method", "full")


def test_merging_that_changes_the_logits_is_refused(convnet, refused):
    model = Classifier.build(
        ModelArguments(model=str(convnet)), SingleLabel(["0", "1"]), ImageInfo((8, 8), 1), True
    ).model
    adapted = add_adapters(MethodArguments("lora"), model, torch.randn(2, 1, 8, 8), steps=1)
    whole = adapted.merge_and_unload

    def broken():
        plain = whole()
        torch.nn.init.ones_(plain.classifier.weight)
        return plain

    adapted.merge_and_unload = broken
    with refused("merge_adapters: merging changes the logits"):
        merged(adapted, torch.randn(2, 1, 8, 8))


def test_adapters_of_a_timm_model_keep_its_processor(tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "base"
    args = ModelArguments(model="timm/test_resnet", image_size=[16], image_mean=[0.4], image_std=[0.2])
    Classifier.build(args, SingleLabel(["0", "1"]), ImageInfo((8, 8), 1), pretrained=False).save(base)
    run = train(tmp_path / "run", *QUICK, "--model", base, "--method", "lora", "--classes", "3", "7").folder
    classifier = Classifier.load(str(run))
    assert list(classifier.model.config.label_names) == ["3", "7"]
    assert classifier.processor.to_dict()["data_config"]["input_size"][-1] == 16


def test_adalora_resumes_to_the_same_bytes(mlp, tmp_path):
    """Before, during and after pruning: the checkpoint has the importance scores."""
    args = json.dumps({"deltaT": 1, "init_r": 6, "target_r": 2})
    arguments = ["--max_train_samples", 100, "--num_train_epochs", 12, "--per_device_train_batch_size", 100, "--model",
                 mlp, "--method", "adalora", "--learning_rate", 0.02, *KEEP_ALL, "--warmup_steps", 0,
                 "--adapter_args", args]  # fmt: skip
    whole = train(tmp_path / "whole", *arguments).folder
    for keep in (2, 8, 11):
        part = shutil.copytree(whole, tmp_path / str(keep))
        interrupt(part, keep)
        train(part, *arguments, "--resume_from_checkpoint", "true")
        assert weights(part, "adapter_model") == weights(whole, "adapter_model"), f"resumed after epoch {keep}"


def test_adalora_needs_several_steps(mlp, tmp_path, refused):
    with refused("adalora prunes over several steps", "only 1"):
        finetune(tmp_path / "run", "--model", mlp, "--method", "adalora", "--max_steps", 1)


def test_adapters_without_their_base_model_are_refused(tmp_path, refused):
    base = train(tmp_path / "base", *QUICK, "--model", "mlp").folder
    run = train(tmp_path / "run", *QUICK, "--model", base, "--method", "lora").folder
    base.rename(tmp_path / "moved")
    with refused("holds adapters of the model in", "which does not exist", "base_model_name_or_path"):
        Classifier.load(str(run))


def test_the_regularisation_of_adalora_does_not_overflow(mlp):
    """It is computed in float32 under mixed precision too: float16 ends at 65,504."""
    model = Classifier.load(str(mlp)).model
    adapted = add_adapters(MethodArguments(method="adalora"), model, torch.zeros(2, 1, 8, 8), steps=10)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name:
                parameter.fill_(100.0)
    expected = hooks_of(adapted).loss_term(adapted)
    with torch.autocast("cpu", torch.float16):
        found = hooks_of(adapted).loss_term(adapted)
    assert torch.equal(found, expected) and expected > 65504


def test_a_skipped_update_does_not_count_for_adalora(convnet, tmp_path, monkeypatch):
    """An update without a gradient says nothing about importance."""
    original = ImageTrainer.compute_loss

    def compute_loss(self, model, inputs, **options):
        loss = original(self, model, inputs, **options)
        return loss * float("nan") if model.training and self.state.global_step == 3 else loss

    monkeypatch.setattr(ImageTrainer, "compute_loss", compute_loss)
    job = train(tmp_path / "run", *QUICK, "--model", convnet, "--method", "adalora", "--on_nan", "skip",
                "--per_device_train_batch_size", 16)  # fmt: skip
    assert job.stages[0]["updates_left_out"] == 1


def test_the_whole_model_is_in_training_mode_from_the_first_step(mlp, tmp_path, monkeypatch):
    """Its dropout too, although PEFT wraps a model in evaluation mode."""
    modes, compute_loss = [], ImageTrainer.compute_loss

    def note(self, model, inputs, **options):
        if self.is_in_train and len(modes) < 3:
            modes.append({module.training for module in model.modules()})
        return compute_loss(self, model, inputs, **options)

    monkeypatch.setattr(ImageTrainer, "compute_loss", note)
    train(tmp_path / "run", *TINY, "--model", mlp, "--method", "lora")
    assert modes[0] == {True}
