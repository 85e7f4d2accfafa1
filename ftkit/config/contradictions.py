"""Checks for keys of different groups that contradict each other."""

import os

from ftkit.config.arguments.training import sharding_of
from ftkit.config.configuration import Config
from ftkit.errors import Advice
from ftkit.precision import deepspeed_config


def check_together(config: Config) -> list[str]:
    """The contradictions within the configuration of a run or a stage, one sentence each."""
    errors: list[str] = []
    if config.loss.early_stopping_patience is not None and not config.training.load_best_model_at_end:
        errors.append(
            Advice(
                "early_stopping_patience needs load_best_model_at_end: true and an eval_strategy, such as epoch: "
                "without them the stopped run would keep a worse model than its best",
                {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            )
        )
    if config.training.save_only_model and config.job.on_nan == "rollback":
        errors.append(
            Advice(
                "on_nan: rollback needs the optimizer of a checkpoint, which save_only_model: true does not save: use "
                "on_nan: skip, or leave save_only_model out",
                {"on_nan": "skip"},
            )
        )
    return errors + _check_sharded(config)


def _check_sharded(config: Config) -> list[str]:
    """The settings that FSDP or DeepSpeed cannot honour: most of them need unsharded weights in training."""
    values = vars(config.training)
    if not (kinds := sharding_of(values)):
        return []
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and (key := next(filter(values.get, ("fsdp", "deepspeed")), None)):
        launcher = f"accelerate_configs/{'fsdp' if key == 'fsdp' else 'deepspeed_zero2'}.yaml"
        return [
            Advice(
                f"{key}: {values[key]} shards the model over several processes, but there is only one: leave it out, "
                f"or launch several with {launcher}",
                {key: None},
            )
        ]
    if len(kinds) > 1:
        return [f"{' and '.join(kinds)} each shard the model: keep one of them"]
    source, pieces = deepspeed_config(values)
    if own := [key for key in ("optimizer", "scheduler") if key in pieces]:
        keys = {"optimizer": "optim, learning_rate and weight_decay", "scheduler": "lr_scheduler_type"}
        return [f"{source}: its {key} would be ignored: remove it there, and set {keys[key]}" for key in own]
    defaults = {"ema_decay": None, "l1": 0.0, "auto_find_batch_size": False, "on_nan": "stop"}
    given = vars(config.loss) | vars(config.job) | values
    return [
        Advice(
            f"{key}: {given[key]} needs unsharded weights, and FSDP and DeepSpeed shard them: leave it out, or launch "
            "with accelerate_configs/multi_gpu.yaml",
            {key: None},
        )
        for key, default in defaults.items()
        if given[key] != default
    ]
