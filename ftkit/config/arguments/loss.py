"""The loss, and regularisation against overfitting."""

import math
from dataclasses import dataclass, field


@dataclass
class LossArguments:
    """What is minimised, and how it is regularised; `label_smoothing_factor` and `weight_decay` are transformers'."""

    loss: str = field(default="cross_entropy", metadata={"help": "What is minimised; see below for the names."})
    focal_gamma: float = field(default=2.0, metadata={"help": "How much `focal` plays down easy images."})
    l1: float = field(default=0.0, metadata={"help": "Add this times the sum of |w| to the loss."})
    decay_norms_and_biases: bool = field(
        default=False,
        metadata={"help": "Apply weight_decay and l1 to normalisation layers, biases and position embeddings too."},
    )
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup, such as 0.2; 0 is off."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of cutmix, such as 1.0; 0 is off."})
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Average the weights with this decay per step, e.g. 0.999; evaluate and save the average."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations on validation without an improvement."}
    )

    def check(self) -> list[str]:
        """The errors in these arguments, one sentence each."""
        errors = [
            f"{name}: {getattr(self, name)} must be at least 0"
            for name in ("focal_gamma", "l1", "mixup", "cutmix")
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            errors.append(f"ema_decay: {self.ema_decay} must be more than 0 and under 1")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            errors.append(f"early_stopping_patience: {self.early_stopping_patience} must be at least 1")
        return errors
