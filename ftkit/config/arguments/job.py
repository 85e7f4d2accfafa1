"""How the job runs: its folder, learning-rate scaling, losses that are not finite, the license."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class JobArguments:
    """How the job runs."""

    overwrite: bool = field(
        default=False, metadata={"help": "Delete what an earlier run left in output_dir before training."}
    )
    scale_lr: Literal["linear", "sqrt", "none"] = field(
        default="none",
        metadata={
            "help": "Multiply every learning rate by the number of processes (linear: Goyal et al. 2017), or by its "
            "square root: the total batch grows with the number of processes."
        },
    )
    on_nan: Literal["stop", "skip", "rollback"] = field(
        default="stop",
        metadata={
            "help": "If a loss is not finite: stop; skip the updates whose gradient is not finite; or roll weights "
            "and optimizer back to the newest checkpoint, and continue with the next images. On a GPU, skip needs "
            "memory for a second copy of the trained weights and the optimizer's state."
        },
    )
    hub_license: str | None = field(
        default=None, metadata={"help": "The license that the model's card names, such as apache-2.0."}
    )

    def check(self) -> list[str]:
        """No errors: all values are valid."""
        return []
