"""Updates whose gradient is not finite are undone on the device, so that the host waits for no gradient."""

from typing import Any

import torch


class Undo:
    """Undoes steps of an optimizer, where the device finds that they are to be undone.

    A step is taken in any case; before it, what it changes on the device is copied: weights, and all that the
    optimizer keeps for them. Steps that an optimizer counts on the host go on, as the schedule does; a fused one's do
    not.

    Attributes:
        possible: whether the optimizer has taken a step, and with it has all that it keeps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.possible = False
        self._finite: torch.Tensor | None = None
        self._before: Any = None
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._put_back)

    def unless(self, finite: torch.Tensor) -> None:
        """Undo the next step unless `finite`, bool () on the device, is true."""
        self._finite = finite

    @torch.no_grad()
    def _remember(self, optimizer: torch.optim.Optimizer, *_) -> None:
        if self._finite is not None:
            self._before = _copy(_changing(optimizer))

    @torch.no_grad()
    def _put_back(self, optimizer: torch.optim.Optimizer, *_) -> None:
        if self._finite is not None:
            _select(self._finite, _changing(optimizer), self._before)
        self._finite = self._before = None
        self.possible = self.possible or bool(_changing(optimizer))


def _changing(optimizer: torch.optim.Optimizer) -> list:
    """Each parameter that has a gradient, with what the optimizer keeps for it."""
    moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [(parameter, optimizer.state.get(parameter, {})) for parameter in moved]


def _copy(kept: Any) -> Any:
    if isinstance(kept, torch.Tensor):
        return kept.clone()
    if isinstance(kept, dict):
        return {name: _copy(value) for name, value in kept.items()}
    return [_copy(value) for value in kept] if isinstance(kept, list | tuple) else None


def _select(finite: torch.Tensor, kept: Any, before: Any) -> None:
    if isinstance(before, torch.Tensor):
        if kept.device == finite.device:
            kept.copy_(torch.where(finite, kept, before))
    elif before is not None:
        for name in before if isinstance(before, dict) else range(len(before)):
            _select(finite, kept[name], before[name])
