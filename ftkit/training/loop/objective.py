"""The objective of a stage: its loss, augmentation and learning rates."""

from dataclasses import dataclass

from torch import nn

from ftkit.config import LossArguments
from ftkit.methods.parameter_groups import Setting


@dataclass
class Objective:
    """The loss of a stage, its augmentation, and the learning rate of each parameter.

    Attributes:
        args: the loss and its regularisation.
        settings: learning rate and weight decay of every parameter, by name.
        augment: names of the augmentations of training images; see `ftkit.data.augmentation.augment`.
        on_nan: the handling of losses that are not finite; see `JobArguments`.
        steps_before: number of optimizer steps planned for adapters in earlier stages.
    """

    args: LossArguments
    settings: dict[str, Setting]
    augment: list[str]
    on_nan: str = "stop"
    steps_before: int = 0

    def penalised(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters under L1: those that train and decay."""
        named = model.named_parameters() if self.args.l1 else ()
        return [weights for name, weights in named if weights.requires_grad and self.settings[name].decays]
