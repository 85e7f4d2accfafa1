"""Running a plan, stage by stage."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from ftkit.methods.adapter_kinds import hooks_of
from ftkit.methods.adapters import merged
from ftkit.methods.freezing import only_training
from ftkit.models.anatomy import plain_name
from ftkit.training.checkpointing.checkpoints import checkpoints, remove, sweep
from ftkit.training.loop.objective import Objective
from ftkit.training.loop.trainer import ImageTrainer
from ftkit.training.stages.features import FeatureExtractor, HeadAlone
from ftkit.training.stages.planning import Plan, PreparedStage
from ftkit.training.stages.results import describe_result, keep_result, restore_weights
from ftkit.training.stages.resumption import Resumption

logger = logging.getLogger(__name__)


def run_plan(plan: Plan, resumption: Resumption) -> list[dict[str, Any]]:
    """Train the model of a plan's classifier, stage by stage.

    Each stage has its own optimizer, schedule and seeds, and its checkpoints in `stages/<number>-<name>`. It starts
    from the weights that validation chose in the previous stage, and changes only what it declares. A resumed run
    skips finished stages and continues within the unfinished one. If only the head trains, on pixels that do not
    change, it trains on features that are computed once. The model ends with the weights that validation chose in the
    last stage; `merge_adapters` merges its adapters.

    Returns:
        Each stage's name, trained parameters, seconds, steps, images per second, and the metric and step of the
        weights that validation chose (None if the last weights were kept).

    Raises:
        UserError: the loss is not finite, a frozen tensor has changed, or merging adapters changes the logits.
    """
    classifier, results = plan.classifier, []
    for number, (prepared, found) in enumerate(zip(plan.stages, resumption.standing, strict=True)):
        if isinstance(found, dict):
            restore_weights(prepared.folder, classifier.model)
            logger.info("  stage %d, %s: already finished", number, prepared.stage.name)
            results.append(found)
        else:
            _log_what_trains(number, plan)
            results.append(_run_stage(plan, prepared, resumption, found))
    hooks_of(classifier.model).finish(classifier.model)
    if plan.config.method.merge_adapters and isinstance(classifier.model, PeftModel):
        pixels = classifier.normalize(plan.images["validation"].sample(64))
        classifier.model = merged(classifier.model, pixels)
    return results


def _run_stage(plan: Plan, prepared: PreparedStage, resumption: Resumption, checkpoint: Path | None) -> dict[str, Any]:
    """Train one stage, from a checkpoint if there is one, and save its result."""
    args, model = prepared.args, plan.classifier.model
    plan.images["train"].seed = args.seed
    statistics = plan.config.method.train_batchnorm_stats
    with only_training(model, prepared.trained, prepared.stage.train, statistics):
        trainer = _trainer(plan, prepared)
        trainer.fingerprint = resumption.fingerprint
        if args.process_index == 0:
            sweep(prepared.folder)
            for old in checkpoints(prepared.folder) if args.save_only_model else ():
                remove(old)
        if checkpoint is not None:
            logger.info("  resumes from %s", checkpoint)
        elif args.resume_from_checkpoint:
            logger.info("no checkpoint in %s yet: training starts at the first step", prepared.folder)
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_state()
    result = describe_result(prepared, model, trainer, output)
    if trainer.is_world_process_zero():
        keep_result(prepared.folder, model, result, resumption.fingerprint)
    return result


def _trainer(plan: Plan, prepared: PreparedStage) -> ImageTrainer:
    """The trainer of a stage: for the head on cached features if that is equivalent, else for the model."""
    config, args = plan.config, prepared.args
    model, normalize = plan.classifier.model, plan.classifier.normalize
    train, validation = plan.images["train"], plan.images["validation"]
    augment, steps_before = config.data.augment or [], prepared.steps_before
    objective = Objective(config.loss, prepared.settings, augment, config.job.on_nan, steps_before)
    pixels = augment or config.data.image_transform or config.loss.mixup or config.loss.cutmix
    changing = pixels or config.method.train_batchnorm_stats
    if prepared.stage.kind.head_alone and config.method.cache_features and not changing:
        head, *others = plan.head
        features = FeatureExtractor(model, head, args, normalize, config.data.cache_dir)
        reason = f"its head is {1 + len(others)} modules" if others else features.why_not(train)
        if reason is None:
            inside = {plain_name(name): setting for name, setting in objective.settings.items()}
            own = {f"head.{name.removeprefix(f'{head}.')}": setting for name, setting in inside.items()}
            objective = dataclasses.replace(objective, settings=own)
            alone = HeadAlone(model, head)
            args.activation_checkpointing = args.gradient_checkpointing = False  # the body does not run
            # Features are in host memory, unlike pixels, which may be on the device and are then not pinned.
            args.dataloader_pin_memory = config.if_given("dataloader_pin_memory") is not False and not args.use_cpu
            return ImageTrainer(alone, args, nn.Identity(), objective, features(train), features(validation))
        logger.info("  every step runs the frozen body: %s", reason)
    return ImageTrainer(model, args, normalize, objective, train, validation)


def _log_what_trains(number: int, plan: Plan) -> None:
    """Log a table at the start of a stage: layer group, parameters, trained ones, learning rate, weight decay."""
    stage, _, args, trained, settings, _ = plan.stages[number]
    sizes = {name: parameter.numel() for name, parameter in plan.classifier.model.named_parameters()}
    counts = f"{sum(sizes[name] for name in trained):,} of {sum(sizes.values()):,}"
    logger.info("  stage %d, %s: %s parameters train", number, stage.name, counts)
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
