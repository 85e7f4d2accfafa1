"""The result of a finished stage, saved with its weights in the stage's folder."""

import json
import logging
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput

from ftkit.files import atomic_write, file_hash
from ftkit.methods.adapter_kinds import hooks_of
from ftkit.training.checkpointing.continuity import Fingerprint
from ftkit.training.loop.trainer import ImageTrainer
from ftkit.training.stages.planning import PreparedStage, size

logger = logging.getLogger(__name__)
_WEIGHTS, _RESULT = "model.safetensors", "result.json"


def describe_result(
    prepared: PreparedStage, model: PreTrainedModel | PeftModel, trainer: ImageTrainer, output: TrainOutput
) -> dict[str, Any]:
    """The record of a stage after its training, for `run.json`."""
    state, seconds = trainer.state, round(trainer.progress.seconds, 3)
    chosen = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return {
        "stage": prepared.stage.name,
        "train": prepared.stage.train,
        "trained_parameters": size(model, prepared.trained),
        "steps": output.global_step,
        "epochs": state.epoch,
        "seconds": seconds,
        "images_per_second": state.epoch * len(trainer.train_dataset) / seconds,
        "waiting_for_data": round(output.metrics["waiting_for_data"], 4),
        "best_metric": state.best_metric if chosen else None,
        "best_step": state.best_global_step if chosen else None,
        "updates_left_out": trainer.progress.left_out,
    }


def keep_result(
    folder: Path, model: PreTrainedModel | PeftModel, result: dict[str, Any], fingerprint: Fingerprint
) -> None:
    """Write the weights of a finished stage, then its result; each file is complete or missing."""
    # On a GPU a recurrent layer's weights are views of one buffer, which safetensors refuses to write.
    weights = {name: value.to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
    with atomic_write(folder / _WEIGHTS) as aside:
        save_file(weights, aside)
    hooks_of(model).save(model, folder)
    added = {"weights": _hashes(folder), "fingerprint": fingerprint.to_json()}
    with atomic_write(folder / _RESULT) as aside:
        aside.write_text(json.dumps(result | added))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result in a stage's folder, with its fingerprint; None if it is missing or the weights have changed."""
    try:
        result = json.loads((folder / _RESULT).read_text())
        unchanged = _hashes(folder) == result.pop("weights")
    except (OSError, ValueError, KeyError):
        return None
    if not unchanged:
        logger.warning("skipped %s: it has changed since it was written", folder / _WEIGHTS)
    return result if unchanged else None


def restore_weights(folder: Path, model: PreTrainedModel | PeftModel) -> None:
    """Give the model the weights of a finished stage."""
    model.load_state_dict(load_file(folder / _WEIGHTS))
    hooks_of(model).restore(model, folder)


def _hashes(folder: Path) -> dict[str, str]:
    """The hashes of a finished stage's tensor files, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
