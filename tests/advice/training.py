"""Situations that a run meets on its way, in which settings are recommended."""

import json

from filelock import FileLock
from support import KEEP_ALL, TINY, interrupt, train

from .config import RUN, _with

LONGER = [*RUN, *KEEP_ALL, "--per_device_train_batch_size", 50, "--num_train_epochs", 3, "--report_to", "none"]
_HELD = []  # locks, until the tests end


def _unfinished(*words, keep=2, resume="checkpoint-2", stage="0-all"):
    """A run that was interrupted after `keep` epochs of its last stage, and that names a checkpoint to resume from."""

    def prepare(folder):
        train(folder / "run", *LONGER, *words)
        interrupt(folder / "run", keep=keep)
        place = folder / "run" / "stages" / stage / resume if resume != "false" else resume
        return [*LONGER, *words, "--resume_from_checkpoint", place]

    return prepare


def _broken(folder):
    command = _unfinished(resume="checkpoint-4")(folder)
    (folder / "run" / "stages" / "0-all" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    return command


def _run_folder(**files):
    def prepare(folder):
        (folder / "run" / "stages").mkdir(parents=True)
        for name, text in files.items():
            (folder / "run" / name.replace("_", ".")).write_text(text)
        return RUN

    return prepare


def _file(folder):
    (folder / "run").write_text("")
    return RUN


def _locked(folder):
    (folder / "run").mkdir()
    _HELD.append(FileLock(folder / "run" / ".lock", blocking=False))
    _HELD[-1].acquire()
    return RUN


def _trained_mlp(*words):
    def prepare(folder):
        train(folder / "base", *RUN, "--report_to", "none")
        return [*RUN, "--model", folder / "base", "--model_args", "{}", *words]

    return prepare


_OUTPUT = "training.checkpointing.output_folder"
CASES = {
    f"{_OUTPUT}:_check_named": lambda folder: [*_unfinished()(folder), "--overwrite", "true"],
    f"{_OUTPUT}:changes": _run_folder(),
    f"{_OUTPUT}:check_run_folder": _file,
    f"{_OUTPUT}:check_run_folder#2": _run_folder(run_json="{}"),
    f"{_OUTPUT}:check_run_folder#3": _unfinished(resume="false"),
    f"{_OUTPUT}:check_run_folder#4": _run_folder(config_yaml="seed: 77"),
    f"{_OUTPUT}:claimed": _locked,
    "methods.adalora:AdaLora.options": _trained_mlp(
        "--method", "adalora", "--merge_adapters", "true", "--adapter_args", '{"init_r": 4, "target_r": 4}'
    ),
    "methods.adapters:_adaptable": _trained_mlp("--method", "ln_tuning"),
    "methods.adapters:_adaptable#2": _trained_mlp("--method", "lora", "--adapter_args", '{"r": -1}'),
    "methods.adapters:merged": _trained_mlp(
        "--method", "lily", "--merge_adapters", "true", "--adapter_args", '{"target_modules": ["layers.0.0"]}'
    ),
    "training.stages.last_batch:check_single_image": lambda folder: [
        "--dataset", "digits", *TINY, "--num_train_epochs", 1, "--max_train_samples", 65
    ],
    "training.loop.not_finite:Guard.check_losses": _with(
        "--learning_rate", 1e30, "--optim", "sgd", "--max_grad_norm", 0, "--logging_steps", 1
    ),
    "training.stages.planning:_check_length": _with(
        "--per_device_train_batch_size", 1000, "--dataloader_drop_last", "true"
    ),
    "training.stages.planning:_check_length#2": _with("--eval_strategy", "steps", "--eval_steps", 500),
    "training.stages.planning:_check_length#3": _with("--eval_delay", 99),
    "training.stages.planning:_check_length#4": _with("--warmup_steps", 1000),
    "training.stages.planning:_in_stage": _with("--stages", '[{"train": "all", "warmup_steps": 1000}]'),
    "training.stages.planning:_try_out": _with("--activation_checkpointing", "true"),
    "training.stages.resumption:_checkpoint": _unfinished("--save_only_model", "true"),
    "training.stages.resumption:_checkpoint#2": _broken,
    "training.stages.resumption:prepare_resumption": _unfinished(
        "--stages", json.dumps([{"train": "all", "name": "first"}, {"train": "all", "name": "second"}]),
        stage="0-first",
    ),
}  # fmt: skip
