"""An exponential moving average of the weights, which is what is evaluated and saved (Polyak & Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

_FILE = "average.safetensors"
_COUNT = "n_averaged"


class WeightAverage(TrainerCallback):
    """Averages what a stage trains, parameters and buffers, after every optimizer step.

    The n-th step counts with `decay`, or with (1 + n) / (10 + n) where that is less, so that the random weights of the
    beginning are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
            if averaged[0].is_floating_point():
                weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
                torch._foreach_lerp_(averaged, current, weight)
            else:
                torch._foreach_copy_(averaged, current)

        self.model = model
        self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    def on_step_end(self, args, state, control, **kwargs):
        self.averaged.update_parameters(self.model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        if self.averaged.n_averaged == 0:  # nothing is averaged before the first step
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for own, averaged in zip(_tensors(self.model), _tensors(self.averaged.module), strict=True):
            own.data, averaged.data = averaged.data, own.data

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint's folder."""
        module, written = self.averaged.module, set()
        trained, tensors = dict(module.named_parameters(remove_duplicate=False)), {}
        for name, value in module.state_dict().items():
            if value.data_ptr() not in written and (name not in trained or trained[name].requires_grad):
                tensors[name] = value.contiguous()  # shared ones under the first of their names
                written.add(value.data_ptr())
        save_file({**tensors, _COUNT: self.averaged.n_averaged}, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Go on with the average of a checkpoint."""
        tensors = load_file(folder / _FILE)
        self.averaged.module.load_state_dict(self.model.state_dict())
        self.averaged.n_averaged.copy_(tensors.pop(_COUNT))
        self.averaged.module.load_state_dict(tensors, strict=False)

    def keep(self, best: str | None) -> None:
        """Give the model the averaged weights for good: those of the checkpoint `best`, or the last."""
        if best is not None:
            self.load(Path(best))
        if self.averaged.n_averaged > 0:
            self.model.load_state_dict(self.averaged.module.state_dict())


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
