"""An exponential moving average of the weights, evaluated and saved in their place (Polyak & Juditsky 1992)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerState

_FILE = "average.safetensors"
_COUNT = "n_averaged"


class WeightAverage(TrainerCallback):
    """Averages a model's parameters and buffers after every optimizer step.

    The decay of the n-th step is `decay` or, if that is less, (1 + n) / (10 + n), so that the random initial weights
    are soon forgotten. Steps are counted on the host: torch's `AveragedModel` counts them on the device, and waits for
    it at every step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.averaged = model, copy.deepcopy(model)
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        averaged, current = _tensors(self.averaged), _tensors(self.model)
        mixed = [self.count > 0 and tensor.is_floating_point() for tensor in averaged]
        if any(mixed):
            average = get_ema_multi_avg_fn(min(self.decay, (1 + self.count) / (10 + self.count)))
            average(list(compress(averaged, mixed)), list(compress(current, mixed)), None)
        for own, other, is_mixed in zip(averaged, current, mixed, strict=True):
            if not is_mixed:
                own.copy_(other)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        if self.count == 0:  # there is no average before the first step
            return
        for own, averaged in zip(_tensors(self.model), _tensors(self.averaged), strict=True):
            own.data, averaged.data = averaged.data, own.data

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        trained, written = dict(self.averaged.named_parameters(remove_duplicate=False)), set()
        tensors = {_COUNT: torch.tensor(self.count)}
        for name, value in self.averaged.state_dict().items():
            if value.data_ptr() not in written and (name not in trained or trained[name].requires_grad):
                tensors[name] = value.contiguous()  # a shared tensor under its first name
                written.add(value.data_ptr())
        save_file(tensors, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Continue with the average of a checkpoint."""
        tensors = load_file(folder / _FILE)
        self.count = int(tensors.pop(_COUNT))
        self.averaged.load_state_dict(self.model.state_dict())
        self.averaged.load_state_dict(tensors, strict=False)

    def keep(self, best: str | None) -> None:
        """Replace the model's weights by the average of the checkpoint `best`, or else the last one."""
        if best is not None:
            self.load(Path(best))
        if self.count > 0:
            self.model.load_state_dict(self.averaged.state_dict())


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
