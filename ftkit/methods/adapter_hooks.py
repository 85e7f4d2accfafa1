"""What an adapter may do in training beside its forward pass."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ftkit.config import LossArguments


class AdapterHooks:
    """Does nothing, which is right for most adapters; a subclass overrides what its adapter needs.

    `ftkit.methods.adapter_kinds.HOOKS` says which adapter has which.
    """

    def contradictions(self, loss: LossArguments, sharded: bool) -> list[str]:
        """What the adapter does not go with, a sentence each.

        Args:
            loss: of the run.
            sharded: whether FSDP or DeepSpeed cut the model into pieces.
        """
        return []

    def options(self, given: dict[str, Any], steps: int) -> dict[str, Any]:
        """Defaults of the adapter's options, which may depend on the optimizer steps in which adapters train.

        Raises:
            UserError: the options of the recipe, `given`, contradict each other.
        """
        return {}

    def prepare(self, model: nn.Module) -> None:
        """Change a model to which the adapters were just added."""

    def bookkeeping(self, model: nn.Module) -> set[str]:
        """The names of parameters that change although they have no gradient."""
        return set()

    def loss_term(self, model: nn.Module) -> torch.Tensor | float:
        """A scalar that is added to the training loss."""
        return 0.0

    def callbacks(self, steps_before: int) -> list[TrainerCallback]:
        """The callbacks of a stage, before which adapters were planned to train for `steps_before` steps."""
        return []

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what the weights do not hold into the folder that has the weights."""

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Read what `save` wrote."""

    def finish(self, model: nn.Module) -> None:
        """Make the model, whose last stage is done, ready to be saved."""
