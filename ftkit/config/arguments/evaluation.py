"""The arguments of an evaluation of a saved model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class EvaluationArguments:
    """Which saved model to evaluate, and on what."""

    model: str = field(default="", metadata={"help": "A folder (of a model, or of a run) or a name on the Hub."})
    split: Literal["train", "validation", "test"] | None = field(
        default=None, metadata={"help": "What to evaluate on. Default: test, or all images of data without splits."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Write predictions, metrics and report into this new folder."}
    )
    batch_size: int = field(default=256, metadata={"help": "Images per batch and device."})
    revision: str | None = field(default=None, metadata={"help": "A branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model. Only for a source that you trust."}
    )

    def check(self) -> list[str]:
        """The errors in these arguments, one sentence each."""
        errors = []
        if self.batch_size < 1:
            errors.append(f"batch_size: {self.batch_size} must be at least 1")
        if self.output_dir and Path(self.output_dir).exists():
            errors.append(f"output_dir: {self.output_dir} exists: give the name of a new folder")
        return errors
