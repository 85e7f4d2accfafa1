"""The plan of a run: its method's stages for this model and this data, checked before anything is written."""

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ftkit.config.arguments.training import TrainingArguments
from ftkit.config.configuration import Config
from ftkit.data.feeding.tensors import Images
from ftkit.errors import UserError
from ftkit.methods.adapters import add_adapters
from ftkit.methods.freezing import only_training
from ftkit.methods.parameter_groups import Setting, parameter_settings
from ftkit.methods.plan import Stage, is_adapter, make_plan
from ftkit.methods.trainable import trained_parameters
from ftkit.models.anatomy import find_head, layer_groups, regroup
from ftkit.models.classifier import Classifier
from ftkit.training.loop.optimizers import make_optimizer, make_schedule
from ftkit.training.stages.last_batch import check_single_image, smallest_batch

logger = logging.getLogger(__name__)


class PreparedStage(NamedTuple):
    """A stage of a plan.

    Attributes:
        stage: the name of the stage and the groups that it trains.
        folder: the folder of its checkpoints.
        args: its training arguments.
        trained: the names of the parameters that it trains.
        settings: learning rate and weight decay of each parameter, by name.
        steps_before: number of optimizer steps in which earlier stages train adapters.
    """

    stage: Stage
    folder: Path
    args: TrainingArguments
    trained: set[str]
    settings: dict[str, Setting]
    steps_before: int


@dataclass(frozen=True)
class Plan:
    """The stages of a run, with their model and images.

    Attributes:
        config: the run's configuration.
        classifier: the classifier; its model has the method's adapters, if any.
        images: the images by split; `train` is trained on, `validation` chooses the checkpoint.
        groups: parameter names by layer group, from input to output, the head last.
        head: the names of the modules of the head.
        stages: the stages in order.
        trained: number of parameters that train in at least one stage.
    """

    config: Config
    classifier: Classifier
    images: dict[str, Images]
    groups: dict[str, list[str]]
    head: list[str]
    stages: list[PreparedStage]
    trained: int


def prepare_plan(config: Config, classifier: Classifier, images: dict[str, Images]) -> Plan:
    """The plan of the run's method for this classifier.

    Args:
        config: the run's configuration.
        classifier: a classifier on the CPU; its model gets the adapters of the method.
        images: the images by split; see `Plan`.

    Raises:
        UserError: a stage names a part that the model lacks, its training arguments contradict each other, or no
            layer takes the adapters.
    """
    groups, head, length = layer_groups(classifier.model), [*find_head(classifier.model)], len(images["train"])
    drafts = _draft(config, len(groups), length)
    planned = [_steps(args, length) if stage.kind.needs_adapters else 0 for stage, _, args in drafts]
    if is_adapter(config.method.method):
        if not (config.method.merge_adapters or classifier.model.name_or_path):
            raise UserError(
                "merge_adapters: adapters are saved without the weights of their base model, which were resampled for "
                "image_size or model_args, so that no file holds them: set it to true",
                fix={"merge_adapters": True},
            )
        pixels = classifier.normalize(images["train"].sample(2))
        classifier.model = add_adapters(config.method, classifier.model, pixels, sum(planned))
        groups = regroup(groups, classifier.model)
    model = classifier.model
    stages = [
        PreparedStage(
            stage,
            folder,
            args,
            trained_parameters(model, groups, stage.train),
            parameter_settings(model, groups, args.learning_rate, config.method, config.loss),
            sum(planned[:number]),
        )
        for number, (stage, folder, args) in enumerate(drafts)
    ]
    for number, stage in enumerate(stages):
        with _in_stage(config, number):
            _try_out(stage, model, _steps(stage.args, length))
            if smallest_batch(stage.args, length) == 1:
                tried, pixels = copy.deepcopy(model), classifier.normalize(images["train"].sample(1))
                with only_training(tried, stage.trained, stage.stage.train, config.method.train_batchnorm_stats):
                    check_single_image(tried, pixels, stage.args, length)
    trained = size(model, set().union(*(stage.trained for stage in stages)))
    plan = Plan(config, classifier, images, groups, head, stages, trained)
    _warn_about_the_head(plan)
    return plan


def size(model: nn.Module, names: set[str]) -> int:
    """The total number of values in the named parameters."""
    return sum(model.get_parameter(name).numel() for name in names)


def _draft(config: Config, layer_groups: int, images: int) -> list[tuple[Stage, Path, TrainingArguments]]:
    """The stages with their folders and training arguments, which do not depend on the model."""
    training, factor, drafts = config.training, _scale(config), []
    for number, stage in enumerate(make_plan(config.method, layer_groups, training.learning_rate)):
        folder = Path(training.output_dir) / "stages" / f"{number}-{stage.name}"
        args = config.of_stage(_stage_seeds(training, number) | stage.arguments, folder)
        args.learning_rate *= factor
        with _in_stage(config, number):
            _check_length(args, images)
        drafts.append((stage, folder, args))
    return drafts


@contextmanager
def _in_stage(config: Config, number: int) -> Iterator[None]:
    """Name the stage in the errors within the block, if the recipe lists stages."""
    try:
        yield
    except UserError as error:
        if not config.method.stages:
            raise
        raise UserError(f"stages[{number}]: {error}", fix=config.method.in_stage(number, error.fix)) from error


def _stage_seeds(args: TrainingArguments, number: int) -> dict[str, int]:
    """The seeds of a stage, each with its own order, augmentation, mixup and dropout.

    The first stage has the run's seeds, so it equals a run of one stage.
    """
    seeds = {name: getattr(args, name) for name in ("seed", "data_seed") if getattr(args, name) is not None}
    if number == 0:
        return seeds
    return {name: int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) for name, seed in seeds.items()}


def _scale(config: Config) -> float:
    """The factor that `scale_lr` applies to learning rates; logged if there are several processes."""
    args, how = config.training, config.job.scale_lr
    processes, images = args.world_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    factor = {"linear": float(processes), "sqrt": math.sqrt(processes), "none": 1.0}[how]
    if processes > 1:
        logger.info(
            "  %d processes: a step takes %s images, %d × %d; learning rates × %.3g (scale_lr: %s)",
            processes, f"{processes * images:,}", processes, images, factor, how,
        )  # fmt: skip
    return factor


def _steps(args: TrainingArguments, images: int) -> int:
    """The number of optimizer steps of a stage."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(_steps_of_an_epoch(args, images) * args.num_train_epochs)


def _steps_of_an_epoch(args: TrainingArguments, images: int) -> int:
    batches = images / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(batches / args.gradient_accumulation_steps)


def _check_length(args: TrainingArguments, images: int) -> None:
    """Raise a `UserError` if a stage with this many images has no step, no checkpoint to choose, or only warm-up."""
    steps = _steps(args, images)
    if steps == 0:
        raise UserError(
            f"per_device_train_batch_size: {args.per_device_train_batch_size} on {args.world_size} processes: the "
            f"{images} images fill no batch, and dataloader_drop_last: true drops them: lower "
            "per_device_train_batch_size, or set dataloader_drop_last: false",
            fix={"dataloader_drop_last": False},
        )
    by_steps = args.eval_strategy == "steps"
    length, unit = (steps, "steps") if by_steps else (steps / _steps_of_an_epoch(args, images), "epochs")
    if args.load_best_model_at_end and by_steps and (args.eval_steps or 0) > steps:
        raise UserError(
            f"eval_steps: {args.eval_steps:g} is more than the {steps} steps of training, so no checkpoint would be "
            f"chosen: set it to {steps} or less, or eval_strategy: epoch",
            fix={"eval_steps": steps, "save_steps": steps},
        )
    if args.load_best_model_at_end and args.eval_delay > math.ceil(length):
        raise UserError(
            f"eval_delay: {args.eval_delay:g} is more than the {math.ceil(length)} {unit} of training, so no "
            f"checkpoint would be chosen: set it to {math.ceil(length)} or less",
            fix={"eval_delay": math.ceil(length)},
        )
    if (warmup := args.get_warmup_steps(steps)) >= steps > 1:
        raise UserError(
            f"warmup_steps: {warmup:g} takes all of the {steps} steps of training, which would never reach the "
            "learning rate: set it to a fraction of them, such as 0.1",
            fix={"warmup_steps": 0.1},
        )


def _try_out(stage: PreparedStage, model: Any, steps: int) -> None:
    """Create the optimizer and the schedule of a stage, to find wrong arguments before anything starts.

    Raises:
        UserError: an argument is wrong, or the model does not support it.
    """
    args = stage.args
    try:
        schedule = make_schedule(args, make_optimizer(args, model, stage.settings), steps)
        for rate in schedule.lr_lambdas if isinstance(schedule, LambdaLR) else ():
            rate(steps // 2)
    except (TypeError, ValueError) as error:
        raise UserError(f"lr_scheduler_kwargs: {args.lr_scheduler_kwargs}: {error}") from error
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UserError(
            f"activation_checkpointing: {model.config.model_type} does not support it: leave it out; if memory is "
            "short, use auto_find_batch_size: true or gradient_accumulation_steps",
            fix={"activation_checkpointing": None, "gradient_checkpointing": None},
        )


def _warn_about_the_head(plan: Plan) -> None:
    """Warn if the head is frozen in all stages, or if only the head trains although the method should train more."""
    name, parameters = list(plan.groups.items())[-1]
    if not any(stage.trained.intersection(parameters) for stage in plan.stages):
        logger.warning("no stage trains the head, %s: if its classes are new, add it to a stage", name)
    for prepared in plan.stages:
        kind = prepared.stage.kind
        if kind.beside_head and prepared.trained <= set(parameters):
            logger.warning("the model has no %s before its head, so only the head trains", kind.written)
