"""The finished stages and checkpoints that a run can resume from."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from ftkit.config.arguments.training import TrainingArguments
from ftkit.errors import UserError
from ftkit.training.checkpointing.checkpoints import defect_of, newest_complete
from ftkit.training.checkpointing.continuity import Fingerprint, read_fingerprint
from ftkit.training.stages.planning import Plan
from ftkit.training.stages.results import read_result

logger = logging.getLogger(__name__)


class Resumption(NamedTuple):
    """The starting point of a run.

    Attributes:
        fingerprint: this run's fingerprint.
        standing: each stage's result, if it is finished, or the checkpoint to resume from, or None.
    """

    fingerprint: Fingerprint
    standing: list[dict[str, Any] | Path | None]


def prepare_resumption(plan: Plan, fingerprint: Fingerprint) -> Resumption:
    """Find finished stages and checkpoints, if the run is to resume. Nothing is written.

    Raises:
        UserError: a stage or checkpoint has another fingerprint than this run, or the checkpoint that
            `resume_from_checkpoint` names cannot be used.
    """
    training = plan.config.training
    standing: list[dict[str, Any] | Path | None] = []
    resume = training.resume_from_checkpoint
    if not resume:
        return Resumption(fingerprint, [None] * len(plan.stages))
    for _, folder, args, *_ in plan.stages:
        found = read_result(folder)
        if found is not None and _is_in(folder, resume):
            raise UserError(
                f"resume_from_checkpoint: {resume}: its stage is finished: leave it out, and the run continues with "
                "the next stage",
                fix={"resume_from_checkpoint": None},
            )
        if found is not None:
            differs = fingerprint.check(found.pop("fingerprint", None), folder, Path(training.output_dir))
            standing.append(found)
            continue
        checkpoint = _checkpoint(args, folder)
        if checkpoint is not None:
            differs = fingerprint.check(read_fingerprint(checkpoint), checkpoint, Path(training.output_dir))
        standing.append(checkpoint)
    if any(found is not None for found in standing) and differs:
        logger.info("  changed since then: %s: the last digits of numbers may differ", differs)
    return Resumption(fingerprint, standing)


def _is_in(folder: Path, checkpoint: str) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def _checkpoint(args: TrainingArguments, folder: Path) -> Path | None:
    """The checkpoint to resume a stage from: the named one, if it belongs to this stage, or its newest complete one.

    Raises:
        UserError: the named checkpoint is not complete, or holds only weights.
    """
    resume = args.resume_from_checkpoint or "true"
    named = resume != "true" and _is_in(folder, resume)
    if args.save_only_model and named:
        raise UserError(
            f"resume_from_checkpoint: {resume} holds only weights (save_only_model: true), so training cannot resume "
            "from it: leave it out, and the stage starts again",
            fix={"resume_from_checkpoint": None},
        )
    if args.save_only_model:
        logger.info("  %s: its checkpoints hold only weights (save_only_model: true): the stage starts again", folder)
        return None
    if named and (wrong := defect_of(Path(resume))):
        raise UserError(
            f"resume_from_checkpoint: {resume} {wrong}: name another, or set true for the newest one",
            fix={"resume_from_checkpoint": True},
        )
    return Path(resume) if named else newest_complete(folder)
