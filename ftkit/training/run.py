"""A run's folder, and a plan carried out in it stage by stage."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from ftkit.config import Config
from ftkit.data.pixels import Normalize8Bit
from ftkit.data.tensors import ImageTensors
from ftkit.errors import UserError
from ftkit.methods.freezing import only_training, trained_parameters
from ftkit.methods.plan import Stage, make_plan
from ftkit.models.anatomy import layer_groups
from ftkit.training.trainer import ImageTrainer

logger = logging.getLogger(__name__)
_ENTRIES = ("config.yaml", "run.json", "stages", "model", "evaluation")


def check_run_folder(config: Config) -> Path:
    """The run's folder, if it is free, or if the configuration says what to do with what lies there.

    Raises:
        UserError: it holds a finished run, or an unfinished one, or is no folder.
    """
    folder, resume = Path(config.training.output_dir), config.training.resume_from_checkpoint
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file: give the name of a folder")
    if config.run.overwrite or not any((folder / entry).exists() for entry in _ENTRIES):
        return folder
    if (folder / "run.json").exists():
        raise UserError(
            f"output_dir: {folder} holds a finished run: give another --output_dir, or --overwrite true to replace it"
        )
    if not resume:
        raise UserError(
            f"output_dir: {folder} holds an unfinished run: --resume_from_checkpoint true goes on with it, "
            "--overwrite true replaces it"
        )
    return folder


def begin_run(config: Config) -> None:
    """Clear what a run to be overwritten left (nothing else in that folder is touched) and save the configuration."""
    folder = Path(config.training.output_dir)
    if config.run.overwrite:
        for entry in _ENTRIES:
            path = folder / entry
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error}") from error


class PreparedStage(NamedTuple):
    """A stage with its folder, its training arguments and the names of the parameters that it moves."""

    stage: Stage
    folder: Path
    args: TrainingArguments
    trained: set[str]


def prepare_plan(config: Config, model: PreTrainedModel) -> list[PreparedStage]:
    """The plan of the run's method for this model, checked before anything is written.

    Raises:
        UserError: a stage names what the model does not have, or its training arguments contradict each other.
    """
    groups = layer_groups(model)
    prepared = []
    for number, stage in enumerate(make_plan(config.method, len(groups), config.training.learning_rate)):
        folder = Path(config.training.output_dir) / "stages" / f"{number}-{stage.name}"
        try:
            args = dataclasses.replace(config.training, output_dir=str(folder), **stage.arguments)
        except (ValueError, TypeError) as error:
            raise UserError(f"stages[{number}]: {error}") from None
        prepared.append(PreparedStage(stage, folder, args, trained_parameters(model, groups, stage.train)))
    return prepared


def run_plan(
    config: Config,
    plan: list[PreparedStage],
    model: PreTrainedModel,
    normalize: Normalize8Bit,
    train: ImageTensors,
    validation: ImageTensors,
) -> tuple[ImageTrainer, list[dict[str, Any]]]:
    """Carry out a plan, stage by stage.

    Each stage has a fresh optimizer and schedule, and its checkpoints in `stages/<number>-<name>`. It begins with the
    weights that validation chose in the one before, and only what it declares moves. With `resume_from_checkpoint`
    the stages that are finished are passed over, and training goes on inside the one that is not.

    Returns:
        The trainer of the last stage, which holds the model that validation chose, and for each stage its name,
        parameters trained, seconds, steps, images per second, and the best value on validation.

    Raises:
        UserError: there is no checkpoint to resume from, the loss is not finite, or something frozen has moved.
    """
    results = []
    for number, (stage, folder, args, trained) in enumerate(plan):
        finished = folder / "result.json"
        if args.resume_from_checkpoint and finished.exists():
            load_model(model, folder / "model.safetensors")
            results.append(json.loads(finished.read_text()))
            logger.info("  stage %d, %s: finished before", number, stage.name)
            continue
        _say_what_trains(number, stage, model, trained, args)
        with only_training(model, trained, stage.train, config.method.train_batchnorm_stats):
            trainer = ImageTrainer(model, args, normalize, train, validation, config.method.early_stopping_patience)
            output = trainer.train(resume_from_checkpoint=_checkpoint(args.resume_from_checkpoint, folder))
        trainer.save_state()
        results.append(_result(stage, trainer, output, sum(model.get_parameter(name).numel() for name in trained)))
        if trainer.is_world_process_zero() and number < len(plan) - 1:
            save_model(model, str(folder / "model.safetensors"))
            finished.write_text(json.dumps(results[-1]))
    return trainer, results


def _say_what_trains(
    number: int, stage: Stage, model: PreTrainedModel, trained: set[str], args: TrainingArguments
) -> None:
    """The table at the start of a stage: layer group, parameters, of which trained, learning rate, weight decay."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    logger.info(
        "  stage %d, %s: %s of %s parameters, learning rate %g, weight decay %g",
        number,
        stage.name,
        f"{sum(sizes[name] for name in trained):,}",
        f"{sum(sizes.values()):,}",
        args.learning_rate,
        args.weight_decay,
    )
    for place, names in layer_groups(model).items():
        moving = sum(sizes[name] for name in names if name in trained)
        state = f"{moving:,} trained" if moving else "frozen"
        logger.info("    %-32s %12s   %s", place, f"{sum(sizes[name] for name in names):,}", state)


def _result(stage: Stage, trainer: ImageTrainer, output: TrainOutput, trained: int) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "train": stage.train,
        "trained_parameters": trained,
        "steps": output.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(output.metrics["train_runtime"], 2),
        "images_per_second": round(output.metrics["train_samples_per_second"], 1),
        "best_metric": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
    }


def _checkpoint(resume: str | None, folder: Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means: a folder, or with `true` the newest of the stage."""
    if not resume or str(resume).lower() == "false":
        return None
    if str(resume).lower() != "true":
        if not Path(resume).is_dir():
            raise UserError(f"resume_from_checkpoint: {resume} is not a folder: give a checkpoint, or true")
        return resume
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is None:
        logger.info("no checkpoint in %s yet: training begins at the first step", folder)
    return last
