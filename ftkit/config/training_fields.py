"""The exceptions among transformers' training arguments; all others work as transformers documents them.

Keys of `OF_THE_RUN` cannot differ between stages; those of `REFUSED` would break what ftkit guarantees; those of
`NOT_FOR_IMAGES` have no effect on image classifiers; those of `NEEDS` have none without another setting.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import transformers

from ftkit.config.machine import runs_on_cpu
from ftkit.config.values import from_json
from ftkit.errors import Advice

Values = dict[str, Any]

# One per process: device, precision, peers, log, seed, folder, and what happens at the end.
OF_THE_RUN = frozenset(
    (
        *("output_dir", "seed", "full_determinism", "resume_from_checkpoint"),
        *("use_cpu", "bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        *("accelerator_config", "fsdp", "fsdp_config", "deepspeed", "ddp_backend", "ddp_timeout"),
        *("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm"),
        *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"),
    )
)

# The reason, and what to do instead.
REFUSED = {
    "bf16_full_eval": "evaluates in another precision than the saved model's: leave it out",
    "fp16_full_eval": "evaluates in another precision than the saved model's: leave it out",
    "logging_nan_inf_filter": "is replaced by on_nan, which says what happens when a loss is not finite: leave it out",
    "debug": "ends a run in the middle of a step: leave it out; on_nan finds losses that are not finite",
    "prediction_loss_only": "drops the predictions, which metrics and report need: leave it out",
    "eval_do_concat_batches": "splits the predictions, and metrics need all at once: leave it out",
    "eval_use_gather_object": "gathers objects, and predictions are tensors: leave it out",
    "batch_eval_metrics": "computes metrics batch by batch, and ftkit's need all predictions: leave it out, or move "
    "predictions off the device with eval_accumulation_steps: 1",
    "include_for_metrics": "passes images or losses to the metrics, which read only predictions: leave it out",
    "save_on_each_node": "writes a folder on each machine, and all machines share output_dir: leave it out",
    "enable_jit_checkpoint": "saves on SIGTERM, which every run does anyway, exact to the step: leave it out",
    "hub_token": "would be saved and shared with the recipe: leave it out, and log in with `hf auth login` or set "
    "HF_TOKEN",
    "hub_strategy": "pushes during training, and ftkit pushes once, after its checks: leave it out",
    "hub_always_push": "is about pushes during training, and ftkit pushes once, at the end: leave it out",
    "ignore_data_skip": "makes a resumed run train on some images again and end with another model: leave it out; "
    "skipping images reads none of them",
    "restore_callback_states_from_checkpoint": "is done whenever a resumed run needs it: leave it out",
    "parallelism_config": "splits the sequences and layers of language models: leave it out, or launch with "
    "accelerate_configs/fsdp.yaml",
    "dataloader_in_order": "would order batches by which worker is fastest, so that no run could be resumed or "
    "repeated: leave it out",
    "train_sampling_strategy": "changes the order of images, and a resume relies on the shuffle by seed and epoch: "
    "leave it out",
    "remove_unused_columns": "is about columns of a dataset, and ftkit's batches have none to spare: leave it out",
    "label_names": "is about columns of a dataset, and the labels of ftkit's batches are known: leave it out",
    "skip_memory_metrics": "resets the peak memory that run.json reports: leave it out, and read it there",
    "do_train": "is for scripts with optional steps, and finetune.py always trains: leave it out",
    "do_eval": "is for scripts with optional steps: leave it out, and set eval_strategy",
    "do_predict": "is for scripts with optional steps, and finetune.py always predicts the test split: leave it out",
    "local_rank": "is set by the launcher: leave it out, and start with accelerate launch or torchrun",
}

# The subject of each key, which image classifiers lack.
NOT_FOR_IMAGES = {
    "average_tokens_across_devices": "tokens",
    "include_num_input_tokens_seen": "tokens",
    "length_column_name": "the length of texts",
    "liger_kernel_config": "kernels for language models",
    "neftune_noise_alpha": "the embeddings of tokens",
    "use_cache": "the generation of text",
    "use_liger_kernel": "kernels for language models",
}


def _given(key: str, *unlike: Any) -> Callable[[Values], bool]:
    return lambda values: values.get(key) not in (None, False, 0, "", *unlike)


def _optim(*parts: str) -> Callable[[Values], bool]:
    return lambda values: any(part in str(values.get("optim", "adamw_torch_fused")) for part in parts)


def _reports_to(*names: str) -> Callable[[Values], bool]:
    return lambda values: bool({*names, "all"} & {*_listed(values.get("report_to"))})


def _takes_betas(values: Values) -> bool:
    """Whether the optimizer reads `adam_beta1`, `adam_beta2` and `adam_epsilon`."""
    optim = str(values.get("optim", "adamw_torch_fused"))
    others = ("timm/", "galore", "grokadamw", "lomo")
    return any(part in optim for part in ("adam", "lion", "ademamix")) and not any(part in optim for part in others)


def _checkpoints_activations(values: Values) -> bool:
    return bool(values.get("activation_checkpointing") or values.get("gradient_checkpointing"))


def _warms_up(values: Values) -> bool:
    return values.get("lr_scheduler_type", "linear") not in ("constant", "reduce_lr_on_plateau", "greedy")


def _by_steps(*strategies: str) -> Callable[[Values], bool]:
    """Whether one of these strategies is `steps`, or `no`, which may switch off a recipe's `steps`."""
    return lambda values: any(values.get(name) in ("steps", "no") for name in strategies)


def _of_several(_values: Values) -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


# Keys that need something else to have an effect: a test whether it is given, and its name.
NEEDS: dict[str, tuple[Callable[[Values], bool], str]] = {
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        (_takes_betas, "an optimizer of that family, such as optim: adamw_torch (timm's take optim_args)"),
    ),
    "optim_target_modules": (_optim("galore", "apollo"), "optim: galore_adamw or apollo_adamw"),
    "eval_steps": (_by_steps("eval_strategy"), "eval_strategy: steps"),
    "save_steps": (_by_steps("save_strategy", "eval_strategy"), "eval_strategy: steps"),
    "warmup_steps": (_warms_up, "a schedule that warms up, such as lr_scheduler_type: constant_with_warmup"),
    **dict.fromkeys(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        (_checkpoints_activations, "activation_checkpointing: true"),
    ),
    **dict.fromkeys(
        ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        (_given("dataloader_num_workers"), "dataloader_num_workers: 1 or more"),
    ),
    "run_name": (_reports_to("trackio", "wandb", "mlflow", "comet_ml", "swanlab"), "report_to: a tracker of runs"),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        (_reports_to("trackio"), "report_to: trackio"),
    ),
    "fsdp_config": (_given("fsdp"), "fsdp: true"),
    "ddp_timeout": (lambda values: not runs_on_cpu(values), "accelerators to train on"),
    "ddp_backend": (_of_several, "several processes, which accelerate launch starts"),
}

# The keys of accelerator_config that do not concern the order and the splitting of batches, which are ftkit's own.
_ACCELERATOR = ("non_blocking", "gradient_accumulation_kwargs")


def check_fields(values: Values, own: Iterable[str]) -> list[str]:
    """The training arguments of a run or a stage that are refused or have no effect, one sentence each.

    Args:
        values: all training arguments by key, typed.
        own: the keys to check, which the run or the stage sets.
    """
    errors, usual = list[str](), _defaults()
    for name in (name for name in changed(values) if name in own):
        shown = f"{name}: {_shown(values[name])}" if name != "hub_token" else name
        if name in REFUSED:
            errors.append(Advice(f"{shown} {REFUSED[name]}", {name: None}))
        elif name in NOT_FOR_IMAGES:
            about = f"has no effect on images: it is about {NOT_FOR_IMAGES[name]}"
            errors.append(Advice(f"{shown} {about}: leave it out", {name: None}))
        elif name in NEEDS and not NEEDS[name][0](values):
            leave = "leave it out" if usual[name] is None else f"set it to {usual[name]}"
            what = f"{shown} has no effect without {NEEDS[name][1]}: give that too, or {leave}"
            errors.append(Advice(what, {name: usual[name]}))
    return errors + _check_best(values) + _check_accelerator(values)


def changed(values: Values) -> list[str]:
    """The training arguments among `values` that are neither null nor at transformers' default."""
    usual = _defaults()
    return [name for name, value in values.items() if name in usual and value is not None and value != usual[name]]


def _shown(value: Any) -> str:
    return ", ".join(str(getattr(item, "value", item)) for item in _listed(value))


def _defaults() -> Values:
    fields = dataclasses.fields(transformers.TrainingArguments)
    usual = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}
    return usual | {"include_num_input_tokens_seen": False}  # the parser reads its default, "no", as False


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_best(values: Values) -> list[str]:
    """The best checkpoint must be both evaluated and saved."""
    saves, evaluates = (_shown(values.get(key)) for key in ("save_strategy", "eval_strategy"))
    if not values.get("load_best_model_at_end") or saves in (evaluates, "best"):
        return []
    return [
        Advice(
            f"save_strategy: {saves} and eval_strategy: {evaluates} differ, and the best checkpoint must be both "
            "evaluated and saved: give both the same value, or set load_best_model_at_end: false",
            {"load_best_model_at_end": False},
        )
    ]


def _check_accelerator(values: Values) -> list[str]:
    given = values.get("accelerator_config")
    if isinstance(given, str):
        given = from_json(Path(given).read_text(errors="replace") if os.path.isfile(given) else given)
    given = given if isinstance(given, dict) else {}
    kept = {key: value for key, value in given.items() if key in _ACCELERATOR}
    errors: list[str] = [
        Advice(
            f"accelerator_config: {key}: {value} is about how accelerate splits batches, and ftkit splits them "
            "itself, the same for any number of processes: leave it out",
            {"accelerator_config": kept or None},
        )
        for key, value in given.items()
        if key not in _ACCELERATOR
    ]
    inner = given.get("gradient_accumulation_kwargs") or {}
    if not isinstance(inner, dict):
        return [*errors, f"accelerator_config: gradient_accumulation_kwargs: {inner!r} is not a mapping"]
    right = {key: value for key, value in inner.items() if key == "sync_each_batch"}
    return errors + [
        Advice(
            f"accelerator_config: gradient_accumulation_kwargs: {key} has no effect beside "
            "gradient_accumulation_steps: leave it out, and set that",
            {"accelerator_config": kept | {"gradient_accumulation_kwargs": right}},
        )
        for key in inner
        if key != "sync_each_batch"
    ]
