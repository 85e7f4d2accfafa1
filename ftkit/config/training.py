"""transformers' `TrainingArguments`, with timm's optimizers, and what it lets pass and nobody means."""

import ast
import math
import multiprocessing
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from accelerate.utils import DynamoBackend
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.training_args import OptimizerNames

from ftkit.config.values import from_json
from ftkit.errors import nearest

TIMM_OPTIMIZERS = "timm/"


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """All of transformers' own by their own names; `optim` may also be `timm/<optimizer>`."""

    optim: str = field(
        default=OptimizerNames.ADAMW_TORCH_FUSED.value,
        metadata={"help": "One of transformers' optimizers (adamw_torch_fused, sgd, …), or timm/<optimizer>."},
    )
    fsdp: bool | None = field(
        default=None, metadata={"help": "Cut the model into pieces (FSDP), with what fsdp_config says."}
    )
    # Texts, for the parser, which would say of them that they are no switch; both are refused.
    parallelism_config: str | None = field(default=None, metadata={"help": "Refused: it is for language models."})
    liger_kernel_config: str | None = field(default=None, metadata={"help": "Refused: it is for language models."})

    def __post_init__(self):
        optim, timm = self.optim, str(self.optim).startswith(TIMM_OPTIMIZERS)
        if timm:
            self.optim = "adamw_torch"  # for transformers' check of the name
        super().__post_init__()
        if timm:
            self.optim = optim
        if self.deepspeed_plugin is not None:
            unset_hf_deepspeed_config()  # by which transformers would build models in pieces, and here they are whole

    @property
    def n_gpu(self) -> int:
        """At most one: the `Trainer` would use several by `DataParallel`, with other batches, and slowly."""
        return min(super().n_gpu, 1)

    @property
    def idle_gpus(self) -> int:
        """How many more the process sees."""
        return super().n_gpu - self.n_gpu


def machine_defaults() -> dict[str, Any]:
    """What depends on the machine, and does not belong into a saved configuration."""
    defaults: dict[str, Any] = {"disable_tqdm": not sys.stderr.isatty(), "ddp_find_unused_parameters": False}
    if not torch.accelerator.is_available():
        # Without `use_cpu` bf16 is refused on a machine that has no accelerator.
        defaults |= {"use_cpu": True, "dataloader_pin_memory": False}
    return defaults


def check_training(values: dict[str, Any]) -> list[str]:
    """What `TrainingArguments` lets pass and nobody means."""
    ranges = {
        "learning_rate": (lambda v: v >= 0, "at least 0"),
        "num_train_epochs": (lambda v: v > 0, "more than 0"),
        "per_device_train_batch_size": (lambda v: 1 <= v < 2**31, "at least 1 and under 2^31"),
        "per_device_eval_batch_size": (lambda v: 1 <= v < 2**31, "at least 1 and under 2^31"),
        "gradient_accumulation_steps": (lambda v: 1 <= v < 2**31, "at least 1 and under 2^31"),
        "logging_steps": (lambda v: v > 0, "more than 0"),
        "eval_steps": (lambda v: v > 0, "more than 0"),
        "save_steps": (lambda v: v > 0, "more than 0"),
        "adam_beta1": (lambda v: 0 <= v < 1, "at least 0 and under 1"),
        "adam_beta2": (lambda v: 0 <= v < 1, "at least 0 and under 1"),
        "adam_epsilon": (lambda v: v >= 0, "at least 0"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "warmup_steps": (lambda v: v >= 0, "at least 0"),
        "max_grad_norm": (lambda v: v >= 0, "at least 0"),
        "label_smoothing_factor": (lambda v: 0 <= v < 1, "at least 0 and under 1"),
        "seed": (lambda v: 0 <= v < 2**32, "at least 0 and under 2^32"),
        "data_seed": (lambda v: 0 <= v < 2**32, "at least 0 and under 2^32"),
        "max_steps": (lambda v: v >= 1 or v == -1, "at least 1, or -1, which leaves it to num_train_epochs"),
        "eval_delay": (lambda v: v >= 0, "at least 0"),
        "eval_accumulation_steps": (lambda v: v >= 1, "at least 1"),
        "save_total_limit": (lambda v: v >= 1, "at least 1, or null, which keeps all checkpoints"),
        "dataloader_num_workers": (lambda v: v >= 0, "at least 0"),
        "dataloader_prefetch_factor": (lambda v: v >= 1, "at least 1"),
        "ddp_bucket_cap_mb": (lambda v: v >= 1, "at least 1"),
    }
    choices = {
        "dataloader_multiprocessing_context": multiprocessing.get_all_start_methods(),
        "torch_compile_backend": [name.value.lower() for name in DynamoBackend if name != DynamoBackend.NO],
        "torch_compile_mode": ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    }
    errors = [
        f"{key}: {values[key]} must be {expected}"
        for key, (valid, expected) in ranges.items()
        if values.get(key) is not None and not (values[key] < math.inf and valid(values[key]))
    ]
    errors += [
        f"{key}: {values[key]!r} is not one of {', '.join(valid)}{nearest(values[key], valid)}"
        for key, valid in choices.items()
        if values.get(key) is not None and values[key] not in valid
    ]
    for key in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if not isinstance(from_json(values.get(key) or "{}"), dict):
            errors.append(f'{key}: {values[key]!r} is not a mapping such as {{"name": 1}}')
    for key in ("accelerator_config", "fsdp_config", "deepspeed"):
        given = values.get(key)
        if given is not None and not isinstance(from_json(given), dict) and not os.path.isfile(given):
            errors.append(f"{key}: {given!r} is neither a mapping nor a JSON file")
    errors += _check_optimizer(values.get("optim", TrainingArguments.optim), values.get("optim_args"))
    metric = values.get("metric_for_best_model")
    if metric is not None and metric.removeprefix("eval_") not in ("accuracy", "loss"):
        errors.append(f"metric_for_best_model: {metric!r} is neither accuracy nor loss, which validation gives")
    errors += _check_trackers(values.get("report_to"))
    return errors


def sharding_of(values: dict[str, Any]) -> list[str]:
    """What is to cut the model into pieces, `fsdp` or `deepspeed`, by these values or by the launcher."""
    launched = {name: os.environ.get(f"ACCELERATE_USE_{name.upper()}", "") for name in ("fsdp", "deepspeed")}
    return [name for name, said in launched.items() if values.get(name) or said.lower() == "true"]


def _check_trackers(report_to: str | list[str] | None) -> list[str]:
    names = [report_to] if isinstance(report_to, str) else report_to or []
    known, errors = list(INTEGRATION_TO_CALLBACK), []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in known:
            errors.append(f"report_to: {name!r} is not one of {', '.join(known)}, all, none{nearest(name, known)}")
        elif name not in get_available_reporting_integrations():
            errors.append(f"report_to: {name} is not installed: install its package, or leave it out")
    return errors


def timm_optimizer_options(text: str | None) -> dict[str, Any]:
    """`optim_args`, such as `betas=(0.9, 0.95),eps=1e-6`, as keyword arguments.

    Raises:
        ValueError: it is not a list of `name=value`.
    """
    try:
        call = ast.parse(f"f({text or ''})", mode="eval").body
        if call.args:
            raise ValueError("a value without a name")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError):
        raise ValueError(f"optim_args: {text!r} is not a list such as eps=1e-6,betas=(0.9, 0.95)") from None


def _check_optimizer(optim: str, options: str | None) -> list[str]:
    if not optim.startswith(TIMM_OPTIMIZERS):
        known = [name.value for name in OptimizerNames]
        return [] if optim in known else [f"optim: {optim!r} is not one of {', '.join(known)}{nearest(optim, known)}"]
    from timm.optim import get_optimizer_info, list_optimizers  # late: most recipes take another

    known, name = list_optimizers(), optim.removeprefix(TIMM_OPTIMIZERS)
    errors = [] if name in known else [f"optim: timm has no optimizer {name!r}{nearest(name, known)}"]
    if name in known and get_optimizer_info(name).second_order:
        errors.append(f"optim: {optim} wants gradients of gradients, which the Trainer does not make: use another")
    try:
        timm_optimizer_options(options)
    except ValueError as error:
        errors.append(str(error))
    return errors
