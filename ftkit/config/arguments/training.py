"""transformers' `TrainingArguments` with ftkit's defaults and timm's optimizers, and stricter checks of its values."""

import dataclasses
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import transformers
from accelerate.utils import DynamoBackend
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import OptimizerNames

from ftkit.compat.transformers import unset_hf_deepspeed_config
from ftkit.config.machine import runs_on_cpu
from ftkit.config.values import from_json
from ftkit.errors import nearest

TIMM_OPTIMIZERS = "timm/"
_THEIRS = transformers.TrainingArguments.__dataclass_fields__
# Keys that ftkit derives from others (see `derived`), and keys that transformers derives from others.
_DERIVED = ("eval_steps", "save_strategy", "save_steps", "load_best_model_at_end")
_RESOLVED = (
    *("greater_is_better", "do_eval", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """All of transformers' training arguments, with ftkit's defaults; `optim` may also be `timm/<optimizer>`."""

    # Never None once the configuration is read.
    output_dir: str = field(default=None, metadata=_THEIRS["output_dir"].metadata)  # type: ignore[assignment]
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata=_THEIRS["eval_strategy"].metadata)
    per_device_eval_batch_size: int = field(default=256, metadata=_THEIRS["per_device_eval_batch_size"].metadata)
    logging_steps: float = field(default=50, metadata=_THEIRS["logging_steps"].metadata)
    save_total_limit: int | None = field(default=1, metadata=_THEIRS["save_total_limit"].metadata)
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata=_THEIRS["ddp_find_unused_parameters"].metadata
    )
    optim: str = field(
        default=OptimizerNames.ADAMW_TORCH_FUSED.value,
        metadata={"help": "One of transformers' optimizers (adamw_torch_fused, sgd, …), or timm/<optimizer>."},
    )
    fsdp: bool | None = field(  # type: ignore[assignment]  # transformers also takes text
        default=None, metadata={"help": "Shard the model (FSDP), with the options in fsdp_config."}
    )
    # Text, so that any value passes the parser and reaches the reason for the refusal.
    parallelism_config: str | None = field(default=None, metadata={"help": "Refused: it is for language models."})
    liger_kernel_config: str | None = field(  # type: ignore[assignment]  # as above
        default=None, metadata={"help": "Refused: it is for language models."}
    )

    def __post_init__(self) -> None:
        self.use_cpu = runs_on_cpu(vars(self))  # otherwise transformers refuses bf16 without an accelerator
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        optim, timm = self.optim, str(self.optim).startswith(TIMM_OPTIMIZERS)
        if timm:
            self.optim = "adamw_torch"  # passes transformers' check of the name
        super().__post_init__()
        if timm:
            self.optim = optim
        if self.deepspeed_plugin is not None:
            unset_hf_deepspeed_config()  # otherwise transformers would shard models while it builds them
        if "fsdp" in sharding_of(vars(self)):
            # Otherwise transformers would load weights in the first process alone, and ftkit evaluates in all.
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
            own: Any = self.fsdp_config  # a dictionary by now, if `fsdp` is set
            version = own.get("version", 2) if self.fsdp else os.environ.get("FSDP_VERSION", 2)
            if str(version) == "1":  # it renames the parameters
                raise ValueError("fsdp_version: 1 is not supported: set fsdp_version: 2 in the launcher's file")

    @property
    def n_gpu(self) -> int:
        """At most one: for several the `Trainer` would use `DataParallel`, which is slow and changes the batches."""
        return min(super().n_gpu, 1)

    @property
    def idle_gpus(self) -> int:
        """How many GPUs the process sees and does not use."""
        return super().n_gpu - self.n_gpu


def values_of(args: TrainingArguments) -> dict[str, Any]:
    """The value of every training argument, by key."""
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}


DEFAULTS: dict[str, Any] = {
    f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    for f in dataclasses.fields(TrainingArguments)
    if f.init
}


def derived(values: dict[str, Any]) -> dict[str, Any]:
    """The training arguments that follow from others: evaluate each epoch, save as often, keep the best checkpoint.

    Args:
        values: training arguments by key; missing ones are at their default.
    """
    values = {"eval_strategy": "steps" if values.get("eval_steps") else TrainingArguments.eval_strategy} | values
    strategy = values["eval_strategy"]
    found = {"eval_strategy": strategy, "save_strategy": "epoch" if strategy == "no" else strategy}
    if strategy == "steps":
        found["eval_steps"] = values.get("logging_steps", TrainingArguments.logging_steps)
        found["save_steps"] = values.get("eval_steps") or found["eval_steps"]
    if strategy != "no":
        found |= {"load_best_model_at_end": True, "metric_for_best_model": values.get("metric_for_best_model")}
    return found


def derived_keys(values: dict[str, Any]) -> set[str]:
    """The keys whose value is the one that follows from others."""
    return {key for key, value in derived(values).items() if key in _DERIVED and values[key] == value}


def in_stage(values: dict[str, Any], given: Collection[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """The training arguments of a stage: the run's, overridden by the stage's and by what follows from the stage's.

    Args:
        values: all training arguments of the run, by key.
        given: the keys that the run sets itself, which do not follow from others.
        arguments: the stage's own training arguments, by key.
    """
    own = {key: value for key, value in values.items() if key not in (*_DERIVED, *_RESOLVED) or key in given}
    if "num_train_epochs" in arguments:
        del own["max_steps"]  # it would override num_train_epochs
    own |= arguments
    return DEFAULTS | derived(own) | own


_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("num_train_epochs", "logging_steps", "eval_steps", "save_steps"), lambda v: v > 0, "more than 0"),
    (("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon"), lambda v: v >= 0, "at least 0"),
    (("warmup_steps", "eval_delay", "dataloader_num_workers"), lambda v: v >= 0, "at least 0"),
    (("eval_accumulation_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"), lambda v: v >= 1, "at least 1"),
    (("adam_beta1", "adam_beta2", "label_smoothing_factor"), lambda v: 0 <= v < 1, "at least 0 and under 1"),
    (("seed", "data_seed"), lambda v: 0 <= v < 2**32, "at least 0 and under 2^32"),
    (
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        lambda v: 1 <= v < 2**31,
        "at least 1 and under 2^31",
    ),
    (("max_steps",), lambda v: v >= 1 or v == -1, "at least 1, or -1, which leaves it to num_train_epochs"),
    (("save_total_limit",), lambda v: v >= 1, "at least 1, or null, which keeps all checkpoints"),
)


def check_training(values: dict[str, Any]) -> list[str]:
    """The invalid values that `TrainingArguments` accepts, one sentence each."""
    choices = {
        "dataloader_multiprocessing_context": multiprocessing.get_all_start_methods(),
        "torch_compile_backend": [name.value.lower() for name in DynamoBackend if name != DynamoBackend.NO],
        "torch_compile_mode": ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    }
    errors = [
        f"{key}: {values[key]} must be {expected}"
        for keys, valid, expected in _RANGES
        for key in keys
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
    return errors


def sharding_of(values: dict[str, Any]) -> list[str]:
    """Which of `fsdp` and `deepspeed` these values or the launcher ask for."""
    launched = {name: os.environ.get(f"ACCELERATE_USE_{name.upper()}", "") for name in ("fsdp", "deepspeed")}
    return [name for name, said in launched.items() if values.get(name) or said.lower() == "true"]
