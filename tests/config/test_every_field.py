"""Every field of `TrainingArguments` with a value other than its default: it works, or it is refused.

`WORKS` names a value and its visible effect; a stage that has the key is compared with one that has not. Fields that
are refused or have no effect are in `ftkit.config.training_fields`, and here with their messages. A field in none of
these tables, such as a new version's, fails the first test.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import finetune, interrupt, train
from torch import nn
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.training_args import OptimizerNames

from ftkit.config.training_fields import NEEDS, NOT_FOR_IMAGES, OF_THE_RUN, REFUSED
from ftkit.data.feeding.engine import load_images, set_up_loading
from ftkit.data.feeding.loader import EpochBatches
from ftkit.data.pixels.images import describe_images
from ftkit.data.sources.load import load_data
from ftkit.models.classifier import Classifier
from ftkit.owners import parse_config
from ftkit.tasks import SingleLabel, task_of
from ftkit.training.checkpointing.continuity import take_fingerprint
from ftkit.training.loop import trainer as training
from ftkit.training.loop.progress import EvaluationLines
from ftkit.training.loop.trainer import ImageTrainer
from ftkit.training.stages.planning import prepare_plan
from ftkit.training.stages.resumption import prepare_resumption
from ftkit.training.stages.running import run_plan

FIELDS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
# Two epochs of three steps; an evaluation and a checkpoint after each epoch, and a line in the log after each step.
BASE = {"dataset": "digits", "model": "mlp", "model_args": {"hidden_sizes": [8]}, "max_train_samples": 60,
        "per_device_train_batch_size": 20, "num_train_epochs": 2, "learning_rate": 0.01, "logging_steps": 1,
        "save_total_limit": 9, "cache_features": False}  # fmt: skip


class Works(NamedTuple):
    """A field that works.

    Attributes:
        value: that is tried.
        expected: what `see` returns with this value, and not without it.
        see: looks at a finished stage: its trainer, and notes taken during training.
        beside: other keys that the run needs.
        without: keys of the stage without it.
    """

    value: Any
    expected: Any
    see: Callable[[SimpleNamespace], Any]
    beside: Mapping[str, Any] = MappingProxyType({})
    without: Mapping[str, Any] = MappingProxyType({})


def rates(stage):
    return [line["learning_rate"] for line in stage.log if "learning_rate" in line]


def group(key):
    return lambda stage: max(group[key] for group in stage.trainer.optimizer.param_groups)


def default(key):
    return lambda stage: stage.trainer.optimizer.defaults[key]


def count(key):
    return lambda stage: sum(key in line for line in stage.log)


def steps(stage):
    return stage.trainer.state.global_step


def checkpoints(stage):
    return sorted(int(path.name[11:]) for path in Path(stage.trainer.args.output_dir).glob("checkpoint-*"))


def loader(key):
    return lambda stage: getattr(stage.trainer.get_train_dataloader(), key)


def ddp(key):
    return lambda stage: getattr(stage.trainer.accelerator.ddp_handler, key)


def first_rows(seed):
    return next(iter(EpochBatches(60, 20, seed))).rows.tolist()


def rows_of(stage):
    return next(iter(stage.trainer.get_train_dataloader().batch_sampler)).rows.tolist()


def kept(stage):
    """The checkpoint whose weights a stage ends with."""
    for step in checkpoints(stage):
        weights = load_file(Path(stage.trainer.args.output_dir) / f"checkpoint-{step}" / "model.safetensors")
        if all(torch.equal(weights[name], value) for name, value in stage.weights.items()):
            return step


def smoothed(stage):
    return round(stage.trainer.loss(10 * torch.eye(10), torch.arange(10)).item(), 2)


def log_level(**place):
    """The level at which a process of that place logs."""

    def see(stage):
        args = stage.trainer.args
        with contextlib.ExitStack() as patched:
            for name, value in place.items():
                patched.enter_context(mock.patch.object(type(args), name, value))
            return args.get_process_log_level()

    return see


SGD = {"optim": "sgd"}
VIT = {"model": "VIT", "method": "full", "model_args": None}
GALORE = {"optim": "galore_adamw", "optim_target_modules": "classifier"}
WORKS = {
    # how long, and on what
    "per_device_train_batch_size": Works(10, 12, steps),
    "num_train_epochs": Works(1, 3, steps),
    "max_steps": Works(2, 2, steps),
    "gradient_accumulation_steps": Works(3, 2, steps),
    "auto_find_batch_size": Works(True, 1, lambda stage: stage.tried),
    "data_seed": Works(7, first_rows(7), rows_of),
    "seed": Works(7, first_rows(7), rows_of),
    "dataloader_drop_last": Works(True, 4, steps, {"per_device_train_batch_size": 25}),
    "dataloader_num_workers": Works(1, 1, loader("num_workers")),
    "dataloader_persistent_workers": Works(True, True, loader("persistent_workers"), {"dataloader_num_workers": 1}),
    "dataloader_prefetch_factor": Works(3, 3, loader("prefetch_factor"), {"dataloader_num_workers": 1}),
    "dataloader_multiprocessing_context": Works(
        "spawn",
        "spawn",
        lambda stage: getattr(
            stage.trainer.get_train_dataloader().multiprocessing_context, "get_start_method", lambda: None
        )(),
        {"dataloader_num_workers": 1},
    ),
    # the learning rate
    "learning_rate": Works(0.5, 0.5, group("initial_lr")),
    "lr_scheduler_type": Works("constant", [0.01] * 6, rates),
    "lr_scheduler_kwargs": Works(
        {"power": 2.0},
        [pytest.approx(0.01 * (1 - step / 6) ** 2, rel=1e-3) for step in range(6)],
        rates,
        {"lr_scheduler_type": "polynomial"},
    ),
    "warmup_steps": Works(2, [0, 0.005, 0.01], lambda stage: rates(stage)[:3]),
    # the optimizer
    "optim": Works("sgd", "SGD", lambda stage: type(stage.trainer.optimizer.optimizer).__name__),
    "optim_args": Works("momentum=0.5", 0.5, default("momentum"), SGD),
    "optim_target_modules": Works(
        "all-linear",
        2,
        lambda stage: sum(len(g["params"]) for g in stage.trainer.optimizer.param_groups if "rank" in g),
        GALORE,
        GALORE,
    ),
    "weight_decay": Works(0.25, 0.25, group("weight_decay")),
    "adam_beta1": Works(0.5, 0.5, lambda stage: default("betas")(stage)[0]),
    "adam_beta2": Works(0.5, 0.5, lambda stage: default("betas")(stage)[1]),
    "adam_epsilon": Works(0.5, 0.5, default("eps")),
    "max_grad_norm": Works(1e-3, True, lambda stage: max(stage.norms) < 1.01e-3),
    "label_smoothing_factor": Works(0.5, 4.5, smoothed),
    # memory, precision and speed
    "activation_checkpointing": Works(True, 4, lambda stage: stage.layers, VIT),
    "activation_checkpointing_kwargs": Works(
        {"every_n_layers": 2}, 3, lambda stage: stage.layers, VIT | {"activation_checkpointing": True}
    ),
    "gradient_checkpointing": Works(True, 4, lambda stage: stage.layers, VIT),
    "gradient_checkpointing_kwargs": Works(
        {"every_n_layers": 2}, 3, lambda stage: stage.layers, VIT | {"activation_checkpointing": True}
    ),
    "torch_empty_cache_steps": Works(2, 3, lambda stage: stage.emptied),
    "bf16": Works(True, torch.bfloat16, lambda stage: stage.dtype),
    "torch_compile": Works(True, "inductor", lambda stage: stage.compiled.get("backend")),
    "torch_compile_backend": Works("eager", "eager", lambda stage: stage.compiled.get("backend")),
    "torch_compile_mode": Works("max-autotune", "max-autotune", lambda stage: stage.compiled.get("mode")),
    "full_determinism": Works(True, True, lambda stage: stage.deterministic),
    # processes
    "ddp_find_unused_parameters": Works(True, True, ddp("find_unused_parameters")),
    "ddp_bucket_cap_mb": Works(7, 7, ddp("bucket_cap_mb")),
    "ddp_broadcast_buffers": Works(False, False, ddp("broadcast_buffers")),
    "ddp_static_graph": Works(True, True, ddp("static_graph")),
    "accelerator_config": Works(
        {"gradient_accumulation_kwargs": {"sync_each_batch": True}, "non_blocking": True},
        (True, True),
        lambda stage: (
            stage.trainer.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False),
            stage.trainer.accelerator.dataloader_config.non_blocking,
        ),
    ),
    # the log
    "logging_strategy": Works("epoch", 2, count("loss")),
    "logging_steps": Works(3, 2, count("loss")),
    "logging_first_step": Works(True, 3, count("loss"), {"logging_steps": 3}),
    "log_level": Works("error", 40, lambda stage: stage.verbosity),
    "log_level_replica": Works("critical", 50, log_level(local_process_index=1)),
    "log_on_each_node": Works(False, 30, log_level(local_process_index=0, process_index=2), {"log_level": "error"}),
    "report_to": Works(
        "tensorboard", ["Tracker"], lambda stage: [name for name in stage.callbacks if name == "Tracker"]
    ),
    "disable_tqdm": Works(False, False, lambda stage: stage.no_bar),
    # evaluation
    "eval_strategy": Works("steps", 6, count("eval_loss")),
    "eval_steps": Works(2, 3, count("eval_loss"), {"eval_strategy": "steps"}),
    "eval_delay": Works(2, 1, count("eval_loss")),
    "per_device_eval_batch_size": Works(30, 5, lambda stage: len(stage.trainer.get_eval_dataloader())),
    "eval_on_start": Works(True, 3, count("eval_loss")),
    "eval_accumulation_steps": Works(1, True, lambda stage: stage.moved > 8, {"per_device_eval_batch_size": 30}),
    # checkpoints
    "save_strategy": Works("best", [3], checkpoints),
    "save_steps": Works(
        2, [2, 4, 6], checkpoints, {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    ),
    "save_total_limit": Works(1, 1, lambda stage: len(checkpoints(stage)), {"metric_for_best_model": "loss"}),
    "save_only_model": Works(
        True, [], lambda stage: list(Path(stage.trainer.args.output_dir).glob("checkpoint-*/optimizer.pt"))
    ),
    "load_best_model_at_end": Works(False, 6, kept),
    "metric_for_best_model": Works("loss", 6, lambda stage: stage.trainer.state.best_global_step),
}
# Tested in a whole run, below: its folder, resuming and pushing.
IN_A_RUN = {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"}
# greater_is_better is accepted if it agrees with the metric, with no effect to see. FSDP and DeepSpeed at work:
# tests/test_machines.py.
ELSEWHERE = {
    "greater_is_better": (False, "greater_is_better: false would choose the checkpoint with the worst accuracy"),
    "fsdp": (True, "fsdp: True shards the model over several processes, but there is only one"),
    "deepspeed": ({"zero_optimization": {"stage": 2}}, "shards the model over several processes"),
}
# Without a GPU these have nothing to act on.
OF_A_GPU = {"use_cpu", "dataloader_pin_memory", "fp16", "tf32"}
REFUSALS = {
    "bf16_full_eval": (True, "in another precision than the saved model's: leave it out"),
    "fp16_full_eval": (True, "in another precision than the saved model's: leave it out"),
    "logging_nan_inf_filter": (False, "is replaced by on_nan"),
    "debug": ("underflow_overflow", "on_nan finds losses that are not finite"),
    "prediction_loss_only": (True, "drops the predictions, which metrics and report need"),
    "eval_do_concat_batches": (False, "metrics need all at once: leave it out"),
    "eval_use_gather_object": (True, "gathers objects, and predictions are tensors"),
    "batch_eval_metrics": (True, "eval_accumulation_steps: 1"),
    "include_for_metrics": ("inputs", "which read only predictions"),
    "save_on_each_node": (True, "all machines share output_dir"),
    "enable_jit_checkpoint": (True, "which every run does anyway"),
    "hub_token": ("hf_x", "log in with `hf auth login` or set HF_TOKEN"),
    "hub_strategy": ("checkpoint", "ftkit pushes once"),
    "hub_always_push": (True, "ftkit pushes once"),
    "ignore_data_skip": (True, "end with another model"),
    "restore_callback_states_from_checkpoint": (True, "is done whenever a resumed run needs it"),
    "dataloader_in_order": (False, "no run could be resumed or repeated"),
    "train_sampling_strategy": ("sequential", "a resume relies on the shuffle"),
    "remove_unused_columns": (False, "batches have none to spare"),
    "label_names": ("label", "labels of ftkit's batches are known"),
    "skip_memory_metrics": (False, "the peak memory that run.json reports"),
    "do_train": (True, "finetune.py always trains"),
    "do_eval": (True, "set eval_strategy"),
    "do_predict": (True, "always predicts the test split"),
    "local_rank": (0, "is set by the launcher"),
    "parallelism_config": ("x", "parallelism_config"),
    "average_tokens_across_devices": (False, "has no effect on images: it is about tokens"),
    "include_num_input_tokens_seen": (True, "has no effect on images: it is about tokens"),
    "length_column_name": ("size", "has no effect on images: it is about the length of texts"),
    "liger_kernel_config": ({"rope": True}, "has no effect on images: it is about kernels for language models"),
    "neftune_noise_alpha": (5.0, "has no effect on images: it is about the embeddings of tokens"),
    "use_cache": (True, "has no effect on images: it is about the generation of text"),
    "use_liger_kernel": (True, "has no effect on images: it is about kernels for language models"),
}
# Fields without an effect alone, and settings beside which they stay so.
ALONE = {
    "adam_beta1": (0.8, {"optim": "sgd"}),
    "adam_beta2": (0.8, {"optim": "timm/lamb"}),
    "adam_epsilon": (0.1, {"optim": "adafactor"}),
    "eval_steps": (3, {"eval_strategy": "epoch"}),
    "save_steps": (3, {}),
    "optim_target_modules": ("all-linear", {}),
    "warmup_steps": (5, {"lr_scheduler_type": "constant"}),
    "activation_checkpointing_kwargs": ({"every_n_layers": 2}, {}),
    "gradient_checkpointing_kwargs": ({"every_n_layers": 2}, {}),
    "dataloader_prefetch_factor": (3, {}),
    "dataloader_persistent_workers": (True, {}),
    "dataloader_multiprocessing_context": ("fork", {}),
    "run_name": ("a", {}),
    "project": ("a", {}),
    "trackio_space_id": ("a/b", {}),
    "trackio_bucket_id": ("a", {}),
    "trackio_static_space_id": ("a/b", {}),
    "fsdp_config": ({"reshard_after_forward": True}, {}),
    "ddp_timeout": (60, {"use_cpu": True}),
    "ddp_backend": ("gloo", {}),
}
TRACKED = ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
QUICK = (
    "learning_rate",
    "eval_steps",
    "save_total_limit",
    "activation_checkpointing",
    "bf16",
    "metric_for_best_model",
)


def test_each_field_is_in_one_table():
    tables = (WORKS, IN_A_RUN, ELSEWHERE, OF_A_GPU, REFUSALS)
    named = [name for table in tables for name in table]
    alone = set(ALONE) - set(WORKS)
    assert len(named) == len(set(named)) and set(named) | alone == FIELDS
    assert alone == {*TRACKED, "fsdp_config", "ddp_timeout", "ddp_backend"}
    assert set(REFUSALS) == {*REFUSED, *NOT_FOR_IMAGES} and set(ALONE) == set(NEEDS)
    assert not OF_THE_RUN - (FIELDS - set(REFUSALS))


def test_each_optimizer_is_known():
    """A new one might group its parameters itself, or step within the backward pass."""
    assert {name.value for name in OptimizerNames} == {
        *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor", "sgd"),
        *("adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "adagrad", "adamw_bnb_8bit"),
        *("adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit"),
        *("paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop"),
        *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit"),
        *("galore_adafactor", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
        *("lomo", "adalomo", "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
        *("apollo_adamw", "apollo_adamw_layerwise", "stable_adamw"),
    }


# --- what works


class Notes(TrainerCallback):
    """Notes what can be seen only while a stage trains."""

    def __init__(self, stage):
        self.stage = stage

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.stage.deterministic = torch.are_deterministic_algorithms_enabled()
        callbacks = self.stage.trainer.callback_handler.callbacks
        self.stage.no_bar = next(c for c in callbacks if isinstance(c, EvaluationLines)).training_bar.disable
        self.stage.verbosity = transformers.logging.get_verbosity()
        head = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
        self.hook = head.register_forward_hook(self.note_dtype)

    def note_dtype(self, _module, _inputs, output):
        self.stage.dtype = output.dtype

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.stage.norms.append(nn.utils.get_total_norm(gradients).item())

    def on_train_end(self, args, state, control, **kwargs):
        self.hook.remove()


@pytest.fixture
def train_recipe(tmp_path, monkeypatch):
    """`train(key=value, …)` trains a recipe with these keys; returns the finished stages."""
    stages, counts, options = [], {}, {}
    original, compile_model = ImageTrainer.train, torch.compile
    layer = (
        transformers.models.vit.modeling_vit.ViTAttention
    )  # one in each layer; runs again if its activations were not kept
    forward = layer.forward
    container = transformers.trainer.EvalLoopContainer

    def counting(name, function):
        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return counted

    def compile_cheaply(model, **kwargs):
        options["compiled"] = kwargs
        return compile_model(model, backend="eager")

    def note(self, **kwargs):
        stage = SimpleNamespace(trainer=self, norms=[])
        stage.callbacks = [type(callback).__name__ for callback in self.callback_handler.callbacks]
        counts.update(tried=0, emptied=0, moved=0, layers=0)
        options["compiled"] = {}
        self.add_callback(Notes(stage))
        output = original(self, **kwargs)
        vars(stage).update(counts | options, log=list(self.state.log_history))
        stage.layers /= self.state.global_step
        stage.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        stages.append(stage)
        return output

    def layer_forward(self, *args, **kwargs):
        counts["layers"] += self.training
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", layer_forward)
    monkeypatch.setattr(torch, "compile", compile_cheaply)
    monkeypatch.setattr(ImageTrainer, "train", note)
    monkeypatch.setattr(training, "parts_that_fit", counting("tried", training.parts_that_fit))
    monkeypatch.setattr(training, "clear_device_cache", counting("emptied", lambda: None))
    monkeypatch.setattr(container, "to_cpu_and_numpy", counting("moved", container.to_cpu_and_numpy))
    fake_galore(monkeypatch)

    def run(**given):
        stages.clear()
        transformers.logging.set_verbosity_warning()
        torch.use_deterministic_algorithms(False)
        known = SingleLabel.validation()
        falling = (dict.fromkeys(known, 1 / n) for n in itertools.count(1))  # accuracy gets worse, loss better
        monkeypatch.setattr("ftkit.tasks.SingleLabel.validate", lambda *_: next(falling))
        given = BASE | {"output_dir": str(tmp_path / "run")} | given
        if given["model"] == "VIT":
            given["model"] = save_vit(tmp_path / "vit")
        (tmp_path / "recipe.yaml").write_text(json.dumps(given))
        config = parse_config(["--config", str(tmp_path / "recipe.yaml")])
        dataset = load_data(config.data)
        task, info = task_of(dataset["train"].features), describe_images(dataset["train"])
        classifier = Classifier.build(config.model, task, info, config.method.method != "scratch")
        images = load_images(dataset, classifier.processor, classifier.channels_of(info), config.data, 0)
        set_up_loading(config.training, images, config.if_given("dataloader_num_workers"))
        classifier.fit(images["train"])
        plan = prepare_plan(config, classifier, images)
        run_plan(plan, prepare_resumption(plan, take_fingerprint(config, images, None)))
        return list(stages)

    verbosity = transformers.logging.get_verbosity()
    yield run
    transformers.logging.set_verbosity(verbosity)
    torch.use_deterministic_algorithms(False)


def save_vit(folder):
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=8, num_labels=10)  # fmt: skip
    Classifier(ViTForImageClassification(config), ViTImageProcessor(size={"height": 8, "width": 8})).save(folder)
    return str(folder)


def fake_galore(monkeypatch):
    package = ModuleType("galore_torch")
    for name in ("GaLoreAdafactor", "GaLoreAdamW", "GaLoreAdamW8bit"):
        setattr(package, name, type(name, (torch.optim.AdamW,), {}))
    monkeypatch.setitem(sys.modules, "galore_torch", package)
    monkeypatch.setattr("transformers.trainer_optimizer.is_galore_torch_available", lambda: True)


@pytest.fixture
def environment(monkeypatch):
    """Restore the environment variables that `full_determinism` sets."""
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC",
                 "FLASH_ATTENTION_DETERMINISTIC"):  # fmt: skip
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def marked(names):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("name", marked(WORKS))
def test_a_field_has_its_effect_in_a_run(train_recipe, environment, tmp_path, name):
    row = WORKS[name]
    (stage,) = train_recipe(**row.beside | {name: row.value})
    assert row.see(stage) == row.expected
    if name in OF_THE_RUN:
        (stage,) = train_recipe(**row.beside, output_dir=str(tmp_path / "without"))
        assert row.see(stage) != row.expected


@pytest.mark.parametrize("name", marked(sorted(WORKS.keys() - OF_THE_RUN)))
def test_a_field_has_its_effect_in_a_stage(train_recipe, name):
    row = WORKS[name]
    stages = [{"train": "all", name: row.value}, {"train": "all", **row.without}]
    first, second = train_recipe(**row.beside | {"stages": stages})
    assert row.see(first) == row.expected
    assert row.see(second) != row.expected


def test_memory_is_pinned_on_request(train_recipe):
    (stage,) = train_recipe()
    for wanted in (True, False):
        stage.trainer.args.dataloader_pin_memory = wanted
        assert stage.trainer.get_train_dataloader().pin_memory == wanted


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(("name", "words"), [("fp16", "needs a GPU"), ("tf32", "--tf32 requires Ampere")])
def test_a_field_that_needs_a_gpu_is_refused_without(refused, name, words):
    with refused(words):
        parse(**{name: True})


def test_only_push_to_hub_pushes_and_passes_the_hub_fields(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr("ftkit.hub.push.check_login", lambda: None)
    monkeypatch.setattr("ftkit.hub.push.push", lambda *args: pushed.append(args))
    words = ["--model", "mlp", "--max_train_samples", 60, "--num_train_epochs", 1]
    hub = ["--hub_model_id", "me/digits", "--hub_private_repo", "true", "--hub_revision", "dev"]
    finetune(tmp_path / "a", *words, *hub)
    assert (tmp_path / "a" / "run.json").is_file() and pushed == []  # recipes/push.py reads them
    finetune(tmp_path / "b", *words, *hub, "--push_to_hub", "true")
    finetune(tmp_path / "c", *words, "--push_to_hub", "true")
    assert pushed == [(tmp_path / "b", "me/digits", True, "dev"), (tmp_path / "c", "c", None, None)]


def test_resuming_from_a_named_checkpoint(tmp_path, logged):
    words = ["--model", "mlp", "--max_train_samples", 60, "--num_train_epochs", 4, "--save_total_limit", 9]
    run = train(tmp_path / "run", *words).folder
    interrupt(run, keep=3)
    train(run, *words, "--resume_from_checkpoint", run / "stages" / "0-all" / "checkpoint-4")
    assert f"resumes from {run}/stages/0-all/checkpoint-4" in logged()


# --- what is refused


def parse(**values):
    words = [word for key, value in values.items() for word in (f"--{key}", written(value))]
    return parse_config(["--dataset", "digits", *words])


def written(value):
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


@pytest.mark.parametrize("name", [*REFUSALS, *ELSEWHERE])
def test_a_field_that_has_no_effect_here_is_refused(refused, name):
    value, words = (REFUSALS | ELSEWHERE)[name]
    with refused(f"{name}", words):
        parse(**{name: value})
    with refused("stages[0]: ", f"{name} applies to the whole run" if name in OF_THE_RUN else words):
        parse(stages=[{"train": "all", name: value}])


@pytest.mark.parametrize("name", sorted(OF_THE_RUN))
def test_a_field_of_the_whole_run_is_refused_in_a_stage(refused, name):
    with refused(f"stages[0]: {name} applies to the whole run: move it out of stages"):
        parse(stages=[{"train": "all", name: None}])


@pytest.mark.parametrize("name", ALONE)
def test_a_field_without_an_effect_alone_is_refused(refused, name):
    value, beside = ALONE[name]
    with refused(f"{name}: ", "has no effect without", "give that too, or "):
        parse(**beside | {name: value})
    if name not in OF_THE_RUN:
        with refused("stages[0]: ", f"{name}: ", "has no effect without"):
            parse(**beside, stages=[{"train": "all", name: value}])


@pytest.mark.parametrize("name", sorted(TRACKED))
def test_fields_of_a_tracker_are_passed_on(monkeypatch, name):
    monkeypatch.setattr("ftkit.training.trackers.get_available_reporting_integrations", lambda: ["trackio"])
    assert getattr(parse(report_to="trackio", **{name: "a/b"}).training, name) == "a/b"


def test_ddp_fields_reach_the_process_group(monkeypatch):
    """transformers passes them on if there are several processes and accelerators."""
    noted, original = {}, transformers.training_args.PartialState
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        transformers.training_args, "PartialState", lambda **options: noted.update(options) or original()
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    parse(ddp_timeout=60, ddp_backend="gloo")
    assert noted["timeout"].total_seconds() == 60 and noted["backend"] == "gloo"


@pytest.mark.parametrize("config", [{"split_batches": True}, {"dispatch_batches": True}, {"even_batches": False}])
def test_fields_that_split_batches_are_refused(refused, config):
    with refused(f"accelerator_config: {next(iter(config))}", "leave it out"):
        parse(accelerator_config=config)
    with refused("gradient_accumulation_kwargs: [1] is not a mapping"):
        parse(accelerator_config={"gradient_accumulation_kwargs": [1]})
    with refused("gradient_accumulation_kwargs: num_steps has no effect"):
        parse(accelerator_config={"gradient_accumulation_kwargs": {"num_steps": 2}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_seed", -1),
        ("max_steps", 0),
        ("eval_delay", -1),
        ("eval_accumulation_steps", 0),
        ("save_total_limit", 0),
        ("dataloader_num_workers", -1),
        ("ddp_bucket_cap_mb", 0),
        ("torch_empty_cache_steps", 0),
        ("dataloader_multiprocessing_context", "forks"),
        ("torch_compile_backend", "inductr"),
        ("torch_compile_mode", "fast"),
        ("log_level", "loud"),
        ("ddp_backend", "glo"),
        ("activation_checkpointing_kwargs", "[1]"),
    ],
)
def test_a_value_that_no_library_takes_is_refused(refused, name, value):
    with refused(f"{name}"):
        parse(**{name: value})
