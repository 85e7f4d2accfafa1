"""A plan carried out stage by stage in a run's folder."""

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ftkit.config import Config
from ftkit.data.pixels import Normalize8Bit
from ftkit.data.tensors import Images
from ftkit.errors import UserError
from ftkit.methods.adapters import add_adapters, merged
from ftkit.methods.freezing import only_training, trained_parameters
from ftkit.methods.parameter_groups import Setting, parameter_settings
from ftkit.methods.plan import Stage, make_plan
from ftkit.models.anatomy import layer_groups, plain_name, regroup
from ftkit.training.checkpoints import checkpoints, file_hash, newest_whole, remove, replace, sweep, what_is_wrong
from ftkit.training.features import FeatureExtractor, HeadAlone
from ftkit.training.optimizers import make_optimizer, make_schedule
from ftkit.training.progress import processes_of
from ftkit.training.trainer import ImageTrainer, Objective

logger = logging.getLogger(__name__)
_WEIGHTS, _RESULT = "model.safetensors", "result.json"  # of a stage that is done


class PreparedStage(NamedTuple):
    """A stage with its folder, its training arguments, what moves, and how each parameter is optimised."""

    stage: Stage
    folder: Path
    args: TrainingArguments
    trained: set[str]
    settings: dict[str, Setting]


class Plan(NamedTuple):
    """The stages of a run, and the model that they train, with adapters where the method has them.

    `groups` are parameter names by layer group, from input to output, the head last.
    """

    model: PreTrainedModel | PeftModel
    groups: dict[str, list[str]]
    stages: list[PreparedStage]


def prepare_plan(config: Config, model: PreTrainedModel, normalize: Normalize8Bit, train: Images) -> Plan:
    """The plan of the run's method for this model, checked before anything is written.

    Raises:
        UserError: a stage names what the model does not have, its training arguments contradict each other, or no
            layer takes the adapters.
    """
    groups, training = layer_groups(model), config.training
    stages, factor = [], _scale(config)
    for number, stage in enumerate(make_plan(config.method, len(groups), training.learning_rate)):
        folder = Path(training.output_dir) / "stages" / f"{number}-{stage.name}"
        args = config.of_stage(stage.arguments, folder)
        args.learning_rate *= factor
        _check_stage(number, args, len(train))
        stages.append((stage, folder, args))
    if config.method.is_adapter:
        steps = sum(_steps(args, len(train)) for stage, _, args in stages if stage.train == "adapters")
        model = add_adapters(config.method, model, normalize(train.sample(2)), steps)
        groups = regroup(groups, model)
    prepared = [
        PreparedStage(
            stage,
            folder,
            args,
            trained_parameters(model, groups, stage.train),
            parameter_settings(model, groups, args.learning_rate, config.method, config.loss),
        )
        for stage, folder, args in stages
    ]
    for number, stage in enumerate(prepared):
        _try_out(number, stage, model, _steps(stage.args, len(train)))
    head = list(groups)[-1]
    if not any(stage.trained.intersection(groups[head]) for stage in prepared):
        logger.warning("no stage trains the head, %s: where its classes are new, name it as well", head)
    for stage in prepared:
        if stage.stage.train in ("bias", "norm") and stage.trained <= set(groups[head]):
            logger.warning("before the head there is no %s: the head alone trains", stage.stage.train)
    return Plan(model, groups, prepared)


def _scale(config: Config) -> float:
    """What `scale_lr` multiplies learning rates by; with several processes the log tells what that changes."""
    args, how = config.training, config.run.scale_lr
    processes, images = args.world_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    factor = {"linear": float(processes), "sqrt": math.sqrt(processes), "none": 1.0}[how]
    if processes > 1:
        logger.info(
            "  %d processes: a step takes %s images, %d × %d; learning rates × %.3g (scale_lr: %s)",
            processes, f"{processes * images:,}", processes, images, factor, how,
        )  # fmt: skip
    return factor


def _check_stage(number: int, args: TrainingArguments, images: int) -> None:
    steps = _steps(args, images)
    if args.load_best_model_at_end and args.eval_strategy == "steps" and args.eval_steps > max(steps, 1):
        raise UserError(
            f"stages[{number}]: eval_steps: {args.eval_steps} is more than the {steps} steps of training, so that "
            f"no checkpoint would be chosen: set it to {steps} or less, or eval_strategy: epoch"
        )
    if steps == 0:
        raise UserError(
            f"stages[{number}]: {images} images make no batch of {args.per_device_train_batch_size} on each of "
            f"{args.world_size} processes under dataloader_drop_last: true: take smaller batches, or leave it out"
        )


def _try_out(number: int, stage: PreparedStage, model: nn.Module, steps: int) -> None:
    """Make what a stage will make of its arguments, so that what is wrong with them is told before anything starts.

    Raises:
        UserError: an option, or what the model would need for it, is missing.
    """
    args = stage.args
    try:
        make_schedule(args, make_optimizer(args, model, stage.settings), steps)
    except UserError as error:
        raise UserError(f"stages[{number}]: {error}") from error
    if args.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise UserError(
            f"stages[{number}]: activation_checkpointing: {model.config.model_type} keeps all that it computes: leave "
            "it out, and use auto_find_batch_size: true or gradient_accumulation_steps where memory is short"
        )


def _steps(args: TrainingArguments, images: int) -> int:
    """Optimizer steps of a stage."""
    if args.max_steps > 0:
        return args.max_steps
    batches = images / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def run_plan(
    config: Config, plan: Plan, normalize: Normalize8Bit, train: Images, validation: Images
) -> tuple[PreTrainedModel | PeftModel, list[dict[str, Any]]]:
    """Carry out a plan, stage by stage.

    Each stage has a fresh optimizer and schedule, and its checkpoints in `stages/<number>-<name>`. It begins with the
    weights that validation chose in the one before, and only what it declares moves. With `resume_from_checkpoint`
    the stages that are finished are passed over, and training goes on inside the one that is not. Where the head
    alone trains on pixels that do not change, it trains on features that are computed once.

    Returns:
        The model that validation chose in the last stage, its adapters merged if they are to be, and for each stage
        its name, parameters trained, seconds, steps, images per second, and the best value on validation.

    Raises:
        UserError: there is no checkpoint to resume from, the loss is not finite, something frozen has moved, or
            merging adapters changes the logits.
    """
    model, groups, _ = plan
    results = []
    for number, (stage, folder, args, trained, settings) in enumerate(plan.stages):
        finished = _finished(folder) if args.resume_from_checkpoint else None
        if finished is not None:
            load_model(model, folder / _WEIGHTS)
            results.append(finished)
            logger.info("  stage %d, %s: finished before", number, stage.name)
            continue
        _say_what_trains(number, plan)
        with only_training(model, trained, stage.train, config.method.train_batchnorm_stats):
            augment, on_nan = config.data.augment or [], config.run.on_nan
            objective = Objective(config.loss, settings, len(train.class_names), augment, on_nan)
            trainer = _trainer(config, model, list(groups)[-1], stage, args, objective, normalize, train, validation)
            output = trainer.train(resume_from_checkpoint=_checkpoint(args, folder))
        trainer.save_state()
        size = sum(model.get_parameter(name).numel() for name in trained)
        results.append(_result(stage, trainer, output, size))
        if trainer.is_world_process_zero():
            _finish(folder, model, results[-1])
    return (merged(model, normalize(validation.sample(64))) if config.method.merge_adapters else model), results


def _trainer(
    config: Config,
    model: PreTrainedModel | PeftModel,
    head: str,
    stage: Stage,
    args: TrainingArguments,
    objective: Objective,
    normalize: Normalize8Bit,
    train: Images,
    validation: Images,
) -> ImageTrainer:
    """The trainer of a stage: of the head on cached features where that gives the same, else of the whole model."""
    pixels = objective.augment or config.data.image_transform or config.loss.mixup or config.loss.cutmix
    changing = pixels or config.method.train_batchnorm_stats
    if stage.train == "head" and config.method.cache_features and not changing:
        features = FeatureExtractor(model, head, args, normalize, config.data.cache_dir)
        reason = features.why_not(train)
        if reason is None:
            inside = {plain_name(name): setting for name, setting in objective.settings.items()}
            own = {f"head.{name.removeprefix(f'{head}.')}": setting for name, setting in inside.items()}
            objective = dataclasses.replace(objective, settings=own)
            alone = HeadAlone(model, head)
            args.activation_checkpointing = False  # of a body that does not run
            return ImageTrainer(alone, args, nn.Identity(), objective, features(train), features(validation))
        logger.info("  every step goes through the frozen body: %s", reason)
    return ImageTrainer(model, args, normalize, objective, train, validation)


def _say_what_trains(number: int, plan: Plan) -> None:
    """The table at the start of a stage: layer group, parameters, of which trained, learning rate, weight decay."""
    stage, _, args, trained, settings = plan.stages[number]
    sizes = {name: parameter.numel() for name, parameter in plan.model.named_parameters()}
    logger.info(
        "  stage %d, %s: %s of %s parameters train",
        number,
        stage.name,
        f"{sum(sizes[name] for name in trained):,}",
        f"{sum(sizes.values()):,}",
    )
    width = max(map(len, plan.groups))
    logger.info("    %-*s %12s %12s   %-13s %s", width, "", "parameters", "trained", "learning rate", "weight decay")
    for place, names in plan.groups.items():
        moving = [name for name in names if name in trained]
        row = f"    {place:<{width}} {sum(sizes[name] for name in names):>12,}"
        if not moving:
            logger.info("%s %12s", row, "frozen")
            continue
        decays = any(settings[name].decays for name in moving)
        rate, decay = settings[moving[0]].learning_rate, args.weight_decay if decays else 0.0
        logger.info("%s %12s   %-13.3g %g", row, f"{sum(sizes[name] for name in moving):,}", rate, decay)


def _finished(folder: Path) -> dict[str, Any] | None:
    """The result of a stage that is done, if its weights are what was written."""
    try:
        result = json.loads((folder / _RESULT).read_text())
        whole = file_hash(folder / _WEIGHTS) == result.pop("weights")
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        logger.warning("passed over %s: it is not what was written", folder / _WEIGHTS)
    return result if whole else None


def _finish(folder: Path, model: nn.Module, result: dict[str, Any]) -> None:
    """Keep the weights of a stage that is done, and then its result, each whole or not at all."""
    aside = folder / f".{_WEIGHTS}.part"
    save_model(model, str(aside))
    replace(aside, folder / _WEIGHTS)
    aside = folder / f".{_RESULT}.part"
    aside.write_text(json.dumps(result | {"weights": file_hash(folder / _WEIGHTS)}))
    replace(aside, folder / _RESULT)


def _result(stage: Stage, trainer: ImageTrainer, output: TrainOutput, trained: int) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "train": stage.train,
        "trained_parameters": trained,
        "steps": output.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(trainer.progress.seconds, 2),
        "images_per_second": round(trainer.state.epoch * len(trainer.train_dataset) / trainer.progress.seconds, 1),
        "waiting_for_data": round(output.metrics["waiting_for_data"], 4),
        "best_metric": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "updates_left_out": trainer.progress.left_out,
    }


def _checkpoint(args: TrainingArguments, folder: Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means in a stage: the one it names, if that is of this stage, or
    else the stage's newest that is whole.

    Raises:
        UserError: the one that it names is not whole, or another number of processes wrote it.
    """
    resume = args.resume_from_checkpoint
    if not resume:
        return None
    if args.process_index == 0:
        sweep(folder)
    named = resume != "true" and Path(resume).absolute().parent == folder.absolute()
    if args.save_only_model and named:
        raise UserError(
            f"resume_from_checkpoint: {resume} holds weights alone (save_only_model: true), and no training can "
            "go on from it: leave it out, and the stage begins anew"
        )
    if args.save_only_model:
        logger.info("  its checkpoints hold weights alone (save_only_model: true): this stage begins anew")
        for old in checkpoints(folder) if args.process_index == 0 else ():
            remove(old)
        return None
    if named and (wrong := what_is_wrong(Path(resume))):
        raise UserError(f"resume_from_checkpoint: {resume} {wrong}: name another, or true for the newest one")
    last = Path(resume) if named else newest_whole(folder)
    if last is None:
        logger.info("no checkpoint in %s yet: training begins at the first step", folder)
        return None
    if (writers := processes_of(last)) != args.world_size:
        raise UserError(
            f"{last} was written by {writers} processes, and these are {args.world_size}, whose batches would be "
            "others: start as many, or give another --output_dir, or begin anew with --overwrite true"
        )
    logger.info("  goes on from %s", last)
    return str(last)
