"""Let graphs add the loss of their batch to the mean of a loader."""

from __future__ import annotations

import torch
from fit_core import Mean, RunnerState
from torch import Tensor

__all__ = ["LossMeter"]


class LossMeter:
    """Keep the total of the losses in one tensor, to which a graph can add.

    Args:
        device: the device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.total = Mean(device).total
        self._shown: _Counted | None = None

    def add(self, state: RunnerState) -> bool:
        """Add the loss in a step that is recorded. Return False if its weight is a tensor."""
        weight = state.batch_size if state.weight is None else state.weight
        if not isinstance(state.loss, Tensor) or isinstance(weight, Tensor) or not weight:
            return False
        self.total.add_(state.loss.detach(), alpha=weight)
        return True

    def show(self, state: RunnerState) -> None:
        """Make it the total of the loader's mean loss, and let the loop count the weight only. Before a replay."""
        meter, shown = state.loss_meters.get("loss"), self._shown
        if shown is None or meter is not shown or meter.total is not self.total:
            if shown is not None and shown.total is self.total:
                shown.total = self.total.clone()  # of an earlier loader, which someone may have kept
            shown = self._shown = state.loss_meters["loss"] = _Counted(self.total, meter)
        shown.is_counted = True


class _Counted(Mean):
    """A mean to whose total a graph may have added the value already."""

    is_counted = False

    def __init__(self, total: Tensor, before: Mean | None) -> None:
        super().__init__(total.device)
        before = before or Mean(total.device)
        self.total, self.weight = total.copy_(before.total), before.weight

    def update(self, value: Tensor | float, weight: float | Tensor) -> None:
        if self.is_counted:
            self.is_counted, self.weight = False, self.weight + weight
        else:
            super().update(value, weight)
