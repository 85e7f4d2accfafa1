"""What happens to a run's folder, and what an evaluation reads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ftkit.arguments.model import OWN_MODELS, check_model_name, local_model


@dataclass
class RunArguments:
    """What happens to the run's folder, and how training is carried out."""

    overwrite: bool = field(
        default=False, metadata={"help": "Delete what an earlier run left in output_dir before training."}
    )
    scale_lr: Literal["linear", "sqrt", "none"] = field(
        default="none",
        metadata={
            "help": "Multiply every learning rate by the number of processes (linear: Goyal et al. 2017), or by its "
            "square root, since the batch of all processes together is as many times per_device_train_batch_size."
        },
    )
    on_nan: Literal["stop", "skip", "rollback"] = field(
        default="stop",
        metadata={
            "help": "When a loss is not finite: stop; skip the updates whose gradient is not finite; or roll weights "
            "and optimizer back to the newest checkpoint, and go on with the next images. On a GPU, skip takes memory "
            "for another copy of what trains and of the optimizer's state."
        },
    )
    hub_license: str | None = field(
        default=None, metadata={"help": "The license that the model's card names, such as apache-2.0."}
    )

    def check(self) -> list[str]:
        """Nothing can be wrong here alone."""
        return []


@dataclass
class EvaluationArguments:
    """Which saved model to evaluate, and on what."""

    model: str = field(default="", metadata={"help": "A folder (of a model, or of a run) or a name on the Hub."})
    split: Literal["train", "validation", "test"] = field(default="test", metadata={"help": "What to evaluate on."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Write predictions, metrics and report into this new folder."}
    )
    batch_size: int = field(default=256, metadata={"help": "Images per batch and device."})
    revision: str | None = field(default=None, metadata={"help": "A branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model. Only for a source that you trust."}
    )

    def check(self) -> list[str]:
        """All that is wrong with these arguments, one sentence each."""
        errors = check_model_name(self.model)
        if self.model in OWN_MODELS and local_model(self.model) is None:
            errors.append(f"model: {self.model} has no trained weights: give the folder of a saved model")
        if self.batch_size < 1:
            errors.append(f"batch_size: {self.batch_size} must be at least 1")
        if self.output_dir and Path(self.output_dir).exists():
            errors.append(f"output_dir: {self.output_dir} exists: give the name of a new folder")
        return errors
