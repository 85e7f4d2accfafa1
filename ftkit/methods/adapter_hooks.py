"""Hooks for adapters that need more than a forward pass."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ftkit.config import LossArguments


class AdapterHooks:
    """Hooks that do nothing, which is right for most adapters; a subclass overrides those that its adapter needs.

    `ftkit.methods.adapter_kinds.HOOKS` maps adapters to their hooks.
    """

    def contradictions(self, loss: LossArguments, sharded: bool) -> list[str]:
        """The settings that the adapter does not work with, one sentence each.

        Args:
            loss: the run's loss arguments.
            sharded: whether FSDP or DeepSpeed shard the model.
        """
        return []

    def options(self, given: dict[str, Any], steps: int) -> dict[str, Any]:
        """Defaults of the adapter's options; they may depend on the number of optimizer steps that train adapters.

        Raises:
            UserError: the recipe's options, `given`, contradict each other.
        """
        return {}

    def prepare(self, model: nn.Module) -> None:
        """Change a model after its adapters were added."""

    def bookkeeping(self, model: nn.Module) -> set[str]:
        """The names of parameters that change without a gradient."""
        return set()

    def loss_term(self, model: nn.Module) -> torch.Tensor | float:
        """A scalar to add to the training loss."""
        return 0.0

    def callbacks(self, steps_before: int) -> list[TrainerCallback]:
        """The callbacks of a stage, if earlier stages planned `steps_before` steps that train adapters."""
        return []

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write state that is not in the weights, into their folder."""

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Read what `save` wrote."""

    def finish(self, model: nn.Module) -> None:
        """Prepare the model for saving, after its last stage."""
