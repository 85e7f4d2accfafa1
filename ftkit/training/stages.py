"""A plan carried out stage by stage in a run's folder."""

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ftkit.config.configuration import Config
from ftkit.data.feeding.tensors import Images
from ftkit.data.pixels.normalize import Normalize8Bit
from ftkit.errors import UserError
from ftkit.files import atomic_write, file_hash
from ftkit.methods.adalora import RANKS, finish_adapters, restore_ranks_of, save_ranks
from ftkit.methods.adapters import add_adapters, merged
from ftkit.methods.freezing import only_training, trained_parameters
from ftkit.methods.parameter_groups import Setting, parameter_settings
from ftkit.methods.plan import Stage, is_adapter, make_plan
from ftkit.models.anatomy import layer_groups, plain_name, regroup
from ftkit.training.checkpoints import checkpoints, newest_whole, remove, sweep, what_is_wrong
from ftkit.training.continuity import Fingerprint, read_fingerprint
from ftkit.training.features import FeatureExtractor, HeadAlone
from ftkit.training.optimizers import make_optimizer, make_schedule
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

    `groups` are parameter names by layer group, from input to output, the head last; `trained` is the number of
    parameters that any stage trains.
    """

    model: PreTrainedModel | PeftModel
    groups: dict[str, list[str]]
    stages: list[PreparedStage]
    trained: int


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
        args = config.of_stage(_stage_seeds(training, number) | stage.arguments, folder)
        args.learning_rate *= factor
        _check_stage(_where(config, number), args, len(train))
        stages.append((stage, folder, args))
    if is_adapter(config.method.method):
        steps = _steps_of_adapters(stages, len(train))
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
        _try_out(_where(config, number), stage, model, _steps(stage.args, len(train)))
    head = list(groups)[-1]
    if not any(stage.trained.intersection(groups[head]) for stage in prepared):
        logger.warning("no stage trains the head, %s: where its classes are new, name it as well", head)
    for stage in prepared:
        if stage.stage.train in ("bias", "norm") and stage.trained <= set(groups[head]):
            logger.warning("before the head there is no %s: the head alone trains", stage.stage.train)
    return Plan(model, groups, prepared, _size(model, set().union(*(stage.trained for stage in prepared))))


def _where(config: Config, number: int) -> str:
    """What stands before a message about a stage: which one it is, where a recipe lists them."""
    return f"stages[{number}]: " if config.method.stages else ""


def _stage_seeds(args: TrainingArguments, number: int) -> dict[str, int]:
    """The seeds of a stage, so that it draws anew all that is drawn: order, augmentation, mixup, dropout.

    The first stage has the run's own, and is what a run of one stage would be.
    """
    seeds = {name: getattr(args, name) for name in ("seed", "data_seed") if getattr(args, name) is not None}
    if number == 0:
        return seeds
    return {name: int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) for name, seed in seeds.items()}


def _size(model: nn.Module, names: set[str]) -> int:
    return sum(model.get_parameter(name).numel() for name in names)


def _scale(config: Config) -> float:
    """What `scale_lr` multiplies learning rates by; with several processes the log tells what that changes."""
    args, how = config.training, config.job.scale_lr
    processes, images = args.world_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    factor = {"linear": float(processes), "sqrt": math.sqrt(processes), "none": 1.0}[how]
    if processes > 1:
        logger.info(
            "  %d processes: a step takes %s images, %d × %d; learning rates × %.3g (scale_lr: %s)",
            processes, f"{processes * images:,}", processes, images, factor, how,
        )  # fmt: skip
    return factor


def _check_stage(where: str, args: TrainingArguments, images: int) -> None:
    """What only the number of images can tell of the arguments of a stage."""
    steps = _steps(args, images)
    if steps == 0:
        raise UserError(
            f"{where}per_device_train_batch_size: {args.per_device_train_batch_size} on {args.world_size} processes: "
            f"the {images} images fill no batch, and dataloader_drop_last: true leaves them out: lower "
            "per_device_train_batch_size, or set dataloader_drop_last: false"
        )
    by_steps = args.eval_strategy == "steps"
    length, unit = (steps, "steps") if by_steps else (steps / _steps_of_an_epoch(args, images), "epochs")
    if args.load_best_model_at_end and by_steps and args.eval_steps > steps:
        raise UserError(
            f"{where}eval_steps: {args.eval_steps:g} is more than the {steps} steps of training, so that no "
            f"checkpoint would be chosen: set it to {steps} or less, or eval_strategy: epoch"
        )
    if args.load_best_model_at_end and args.eval_delay > math.ceil(length):
        raise UserError(
            f"{where}eval_delay: {args.eval_delay:g} is more than the {math.ceil(length)} {unit} of training: set it "
            f"to {math.ceil(length)} or less, or no checkpoint is chosen"
        )
    if (warmup := args.get_warmup_steps(steps)) >= steps > 1:
        raise UserError(
            f"{where}warmup_steps: {warmup:g} takes all of the {steps} steps of training, which would never reach the "
            "learning rate: set it to a share of them, such as 0.1"
        )


def _try_out(where: str, stage: PreparedStage, model: nn.Module, steps: int) -> None:
    """Make what a stage will make of its arguments, so that what is wrong with them is told before anything starts.

    Raises:
        UserError: an option, or what the model would need for it, is missing.
    """
    args = stage.args
    try:
        schedule = make_schedule(args, make_optimizer(args, model, stage.settings), steps)
        for rate in schedule.lr_lambdas if isinstance(schedule, LambdaLR) else ():
            rate(steps // 2)
    except UserError as error:
        raise UserError(f"{where}{error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}lr_scheduler_kwargs: {args.lr_scheduler_kwargs}: {error}") from error
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UserError(
            f"{where}activation_checkpointing: {model.config.model_type} does not support it: leave it out, and use "
            "auto_find_batch_size: true or gradient_accumulation_steps where memory is short"
        )


def _steps(args: TrainingArguments, images: int) -> int:
    """Optimizer steps of a stage."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(_steps_of_an_epoch(args, images) * args.num_train_epochs)


def _steps_of_an_epoch(args: TrainingArguments, images: int) -> int:
    batches = images / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(batches / args.gradient_accumulation_steps)


class Resumption(NamedTuple):
    """What a run goes on with.

    Attributes:
        fingerprint: of this run.
        standing: of each stage its result, if it is done, or the checkpoint to go on from, or None.
    """

    fingerprint: Fingerprint
    standing: list[dict[str, Any] | Path | None]


def prepare_resumption(config: Config, plan: Plan, fingerprint: Fingerprint) -> Resumption:
    """What is there of each stage, if the run is to go on. Nothing is written.

    Raises:
        UserError: it rests on something else than this run, or the checkpoint that is named is none to go on from.
    """
    standing, resume = [], config.training.resume_from_checkpoint
    if not resume:
        return Resumption(fingerprint, [None] * len(plan.stages))
    for _, folder, args, *_ in plan.stages:
        found, source = _finished(folder), folder
        if found is not None and _is_in(folder, resume):
            raise UserError(
                f"resume_from_checkpoint: {resume}: its stage is finished, and the run goes on behind it: leave it out"
            )
        there = None if found is None else found.pop("fingerprint", None)
        if found is None and (source := _checkpoint(args, folder)) is not None:
            found, there = source, read_fingerprint(source)
        if found is not None:
            differs = fingerprint.check(there, source, Path(config.training.output_dir))
        standing.append(found)
    if any(found is not None for found in standing) and differs:
        logger.info("  since then: %s: the last digits of numbers may differ", differs)
    return Resumption(fingerprint, standing)


def _is_in(folder: Path, checkpoint: str) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def _steps_of_adapters(stages: list[tuple], images: int) -> int:
    """Optimizer steps of those stages in which adapters train."""
    return sum(_steps(args, images) for stage, _, args, *_ in stages if stage.train == "adapters")


def run_plan(
    config: Config, plan: Plan, resumption: Resumption, normalize: Normalize8Bit, train: Images, validation: Images
) -> tuple[PreTrainedModel | PeftModel, list[dict[str, Any]]]:
    """Carry out a plan, stage by stage.

    Each stage has a fresh optimizer and schedule, seeds of its own, and its checkpoints in `stages/<number>-<name>`.
    It begins with the weights that validation chose in the one before, and only what it declares moves. In a run that
    goes on the stages that are finished are passed over, and training goes on inside the one that is not. Where the
    head alone trains on pixels that do not change, it trains on features that are computed once.

    Returns:
        The model that validation chose in the last stage, its adapters merged if they are to be, and for each stage
        its name, parameters trained, seconds, steps, images per second, and the value and step that validation chose
        (None where it is the last weights that stayed).

    Raises:
        UserError: the loss is not finite, something frozen has moved, or merging adapters changes the logits.
    """
    model, groups = plan.model, plan.groups
    results = []
    for number, (stage, folder, args, trained, settings) in enumerate(plan.stages):
        found = resumption.standing[number]
        if isinstance(found, dict):
            model.load_state_dict(load_file(folder / _WEIGHTS))
            restore_ranks_of(model, folder)
            results.append(found)
            logger.info("  stage %d, %s: finished before", number, stage.name)
            continue
        _say_what_trains(number, plan)
        train.seed = args.seed
        with only_training(model, trained, stage.train, config.method.train_batchnorm_stats):
            augment, on_nan = config.data.augment or [], config.job.on_nan
            before = _steps_of_adapters(plan.stages[:number], len(train))
            objective = Objective(config.loss, settings, augment, on_nan, before)
            trainer = _trainer(config, model, list(groups)[-1], stage, args, objective, normalize, train, validation)
            trainer.fingerprint = resumption.fingerprint
            if args.process_index == 0:
                sweep(folder)
                for old in checkpoints(folder) if args.save_only_model else ():
                    remove(old)
            if found is not None:
                logger.info("  goes on from %s", found)
            elif args.resume_from_checkpoint:
                logger.info("no checkpoint in %s yet: training begins at the first step", folder)
            output = trainer.train(resume_from_checkpoint=None if found is None else str(found))
        trainer.save_state()
        results.append(_result(stage, trainer, output, _size(model, trained)))
        if trainer.is_world_process_zero():
            _finish(folder, model, results[-1], resumption.fingerprint)
    finish_adapters(model)
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
            args.activation_checkpointing = args.gradient_checkpointing = False  # of a body that does not run
            # Pixels may lie on the device, where nothing is pinned; features lie in the machine's own memory.
            args.dataloader_pin_memory = config.if_given("dataloader_pin_memory") is not False and not args.use_cpu
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
        whole = _hashes(folder) == result.pop("weights")
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        logger.warning("passed over %s: it is not what was written", folder / _WEIGHTS)
    return result if whole else None


def _hashes(folder: Path) -> dict[str, str]:
    """Of the files of a stage that is done, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}


def _finish(folder: Path, model: nn.Module, result: dict[str, Any], fingerprint: Fingerprint) -> None:
    """Keep the weights of a stage that is done, and then its result, each whole or not at all."""
    # On a GPU the weights of a recurrent layer are pieces of one buffer, which safetensors would not write.
    weights = {name: value.to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
    with atomic_write(folder / _WEIGHTS) as aside:
        save_file(weights, aside)
    (folder / RANKS).unlink(missing_ok=True)
    save_ranks(model, folder)
    added = {"weights": _hashes(folder), "fingerprint": fingerprint.to_json()}
    with atomic_write(folder / _RESULT) as aside:
        aside.write_text(json.dumps(result | added))


def _result(stage: Stage, trainer: ImageTrainer, output: TrainOutput, trained: int) -> dict[str, Any]:
    state, seconds = trainer.state, round(trainer.progress.seconds, 3)
    chosen = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return {
        "stage": stage.name,
        "train": stage.train,
        "trained_parameters": trained,
        "steps": output.global_step,
        "epochs": state.epoch,
        "seconds": seconds,
        "images_per_second": state.epoch * len(trainer.train_dataset) / seconds,
        "waiting_for_data": round(output.metrics["waiting_for_data"], 4),
        "best_metric": state.best_metric if chosen else None,
        "best_step": state.best_global_step if chosen else None,
        "updates_left_out": trainer.progress.left_out,
    }


def _checkpoint(args: TrainingArguments, folder: Path) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means in a stage: the one it names, if that is of this stage, or
    else the stage's newest that is whole.

    Raises:
        UserError: the one that it names is not whole.
    """
    resume = args.resume_from_checkpoint
    named = resume != "true" and _is_in(folder, resume)
    if args.save_only_model and named:
        raise UserError(
            f"resume_from_checkpoint: {resume} holds weights alone (save_only_model: true), and no training can "
            "go on from it: leave it out, and the stage begins anew"
        )
    if args.save_only_model:
        logger.info("  %s: its checkpoints hold weights alone (save_only_model: true): this stage begins anew", folder)
        return None
    if named and (wrong := what_is_wrong(Path(resume))):
        raise UserError(f"resume_from_checkpoint: {resume} {wrong}: name another, or true for the newest one")
    return Path(resume) if named else newest_whole(folder)
