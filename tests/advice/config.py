"""Situations in which the configuration is refused, and settings are recommended."""

import json
import os

from support import MLP, TINY

RUN = ["--dataset", "digits", *MLP, *TINY, "--num_train_epochs", 1]


def _with(*words):
    return lambda folder: [*RUN, *words]


def _launched(words, **environment):
    def prepare(folder):
        os.environ.update(environment)
        return [*RUN, *words]

    return prepare


def _trained_file(folder):
    """The weights of a network as a file, as other programs save them, with the arguments that name it."""
    import timm
    import torch

    torch.save(timm.create_model("test_vit", num_classes=2).state_dict(), folder / "weights.pth")
    return ["--dataset", "digits", *TINY, "--num_train_epochs", 1, "--model", folder / "weights.pth",
            "--architecture", "timm/test_vit", "--image_size", 160]  # fmt: skip


def _stage(**settings):
    return json.dumps([{"train": "all", **settings}])


CASES = {
    "config.arguments.data:DataArguments._check_transform": _with(
        "--image_transform", '{"hflip": 0.5}', "--data_engine", "tensor"
    ),
    "config.arguments.data:DataArguments.check": _with("--samples_per_class", 5),
    "config.arguments.data:DataArguments.check#2": lambda folder: [*RUN, "--data_dir", folder],
    "config.arguments.method:MethodArguments._check_stages": _with("--stages", "[]"),
    "config.arguments.method:MethodArguments.check": _with("--layer_decay", 2),
    "config.arguments.method:MethodArguments.check#2": _with("--head_lr_multiplier", 0),
    "config.arguments.model:ModelArguments.check": _with("--architecture", "timm/resnet18"),
    "config.arguments.model:ModelArguments._check_input": _with(
        "--model", "timm/test_resnet", "--image_size", 32, "--model_args", '{"num_classes": 3}'
    ),
    "config.contradictions:_check_sharded": _with("--fsdp", "true"),
    "config.contradictions:_check_sharded#2": _launched(["--ema_decay", 0.9], ACCELERATE_USE_FSDP="true"),
    "config.contradictions:check_together": _with(
        "--early_stopping_patience", 2, "--load_best_model_at_end", "false"
    ),
    "config.contradictions:check_together#2": _with("--on_nan", "rollback", "--save_only_model", "true"),
    "config.loader:_check_stages": _with("--stages", _stage(do_train=True)),
    "config.machine:check_machine": _launched(["--use_cpu", "false"], ACCELERATE_USE_CPU="true"),
    "config.machine:check_machine#2": _launched([], LOCAL_WORLD_SIZE="99"),
    "config.machine:check_machine#3": _with("--use_cpu", "false"),
    "config.training_fields:_check_accelerator": _with("--accelerator_config", '{"even_batches": false}'),
    "config.training_fields:_check_accelerator#2": _with(
        "--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}'
    ),
    "config.training_fields:_check_best": _with("--save_strategy", "no", "--load_best_model_at_end", "true"),
    "config.training_fields:check_fields": _with("--do_train", "true"),
    "config.training_fields:check_fields#2": _with("--use_liger_kernel", "true"),
    "config.training_fields:check_fields#3": _with("--dataloader_prefetch_factor", 3),
    "data.checks:check": _with("--augment", "flip", "alternating_flip"),
    "methods.adalora:AdaLora.contradictions": lambda folder: [
        *_trained_file(folder), "--method", "adalora", "--merge_adapters", "true", "--ema_decay", 0.9
    ],
    "methods.adapter_kinds:check_adapter_args": lambda folder: [
        *_trained_file(folder), "--method", "lora", "--merge_adapters", "true",
        "--adapter_args", '{"task_type": "SEQ_CLS"}',
    ],
    "methods.adapter_kinds:check_adapter_args#2": lambda folder: [
        *_trained_file(folder), "--method", "lora", "--merge_adapters", "true",
        "--adapter_args", '{"layers_to_transform": [0]}',
    ],
    "methods.adapter_kinds:check_adapter_args#3": lambda folder: [
        *_trained_file(folder), "--method", "lora",
        "--adapter_args", '{"init_lora_weights": "pissa_niter_4"}',
    ],
    "methods.checks:_check_adapter": lambda folder: [
        *_trained_file(folder), "--method", "lora", "--merge_adapters", "true", "--train_batchnorm_stats", "true"
    ],
    "methods.checks:_check_plan": _with("--merge_adapters", "true"),
    "methods.checks:_check_plan#2": lambda folder: [
        *_trained_file(folder), "--method", "linear_probe", "--stages", _stage()
    ],
    "methods.checks:_check_weights": _with("--method", "full"),
    "methods.checks:_check_weights#2": lambda folder: [*_trained_file(folder), "--method", "scratch"],
    "methods.checks:_check_weights#3": lambda folder: [*_trained_file(folder), "--method", "lora"],
    "methods.checks:check": _with("--surgical_groups", "head"),
    "precision:decide_precision": _launched(["--bf16", "false"], ACCELERATE_MIXED_PRECISION="bf16"),
    "precision:decide_precision#2": _with("--bf16", "true", "--fp16", "true"),
    "precision:decide_precision#3": _with("--fp16", "true"),
    "tasks.checks:_check_best": _with("--metric_for_best_model", "accuracy", "--greater_is_better", "false"),
    "tasks.checks:_check_best#2": _with(
        "--lr_scheduler_type", "reduce_lr_on_plateau", "--lr_scheduler_kwargs", '{"mode": "min"}',
        "--metric_for_best_model", "accuracy",
    ),
    "tasks.checks:check": _with("--focal_gamma", 3),
    "training.loop.optimizers:check_optimizer": _with("--optim", "lomo"),
    "training.loop.optimizers:check_optimizer#2": _with("--optim", "sgd", "--optim_args", "momentum=0.9,speed=1"),
    "training.loop.optimizers:_check_timm": _with("--optim", "timm/adahessian"),
    "training.trackers:check_trackers": _with("--report_to", "wandb"),
}  # fmt: skip
