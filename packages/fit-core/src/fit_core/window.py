"""Weigh the losses of batches so that their gradients add up to those of one big batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed

from .metric import double

__all__ = ["Window"]


class Window:
    """Weigh the batches whose gradients make one optimizer step.

    The gradient of a step is `sum(w_i * g_i) / sum(w_i)` over its batches on all processes, for batches of weight
    `w_i` with mean gradients `g_i`. As long as all have the weight of the first, that is `g_i / size` and costs
    one division of the loss. If a window turns out shorter or uneven, the gradients are multiplied once, before the
    last backward pass. So each process scales its own gradients, and the average by DDP is right.

    Args:
        size: batches per optimizer step.
        world_size: number of processes whose gradients are averaged. Above 1 they sum their weights at each step.
    """

    def __init__(self, size: int, world_size: int = 1) -> None:
        self.size = size
        self.world_size = world_size
        self.is_trivial = size == 1 and world_size == 1
        """Whether a step is one batch of one process, whose loss needs no scaling."""
        self._weight: float | Tensor = 0  # of the batches so far in an open window
        self._expected: float | Tensor = 0

    def weigh(
        self, weight: float | Tensor, closes: bool, device: torch.device
    ) -> tuple[float | Tensor, float | Tensor | None]:
        """Return the divisor of the mean loss of a batch, and the factor of the gradients so far if the window turns
        out uneven, both to apply before the backward pass of the batch. Call it once per batch.

        Args:
            weight: the number that the loss is a mean over, or a 0-dim tensor, which is not read back.
            closes: whether it is the window's last batch.
            device: the device of a weight that is exchanged between processes.
        """  # noqa: D205
        if isinstance(weight, Tensor):
            weight = weight.to(device, double(device))
        opens = not isinstance(self._weight, Tensor) and self._weight == 0
        if opens:
            self._expected = _or_one(weight) * self.size
        self._weight = self._weight + weight
        factor: float | Tensor | None = None
        if closes:
            expected, self._expected = self._expected, _or_one(self._mean_over_processes(device))
            self._weight = 0
            if not opens and not _are_equal(expected, self._expected):
                factor = expected / self._expected
        return (self._expected / weight if isinstance(weight, Tensor) or weight else math.inf), factor

    def state_dict(self) -> dict[str, Any]:
        """Return the weights seen and expected."""
        return {"weight": self._weight, "expected": self._expected}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume inside the window that `state_dict` described."""
        self._weight, self._expected = state_dict["weight"], state_dict["expected"]

    def _mean_over_processes(self, device: torch.device) -> float | Tensor:
        if self.world_size == 1:
            return self._weight
        total = torch.zeros((), dtype=double(device), device=device) + self._weight
        distributed.all_reduce(total)
        return total / self.world_size


def _are_equal(expected: float | Tensor, actual: float | Tensor) -> bool:
    """Return whether two weights are equal numbers. A tensor is not read."""
    return not isinstance(expected, Tensor) and not isinstance(actual, Tensor) and expected == actual


def _or_one(weight: float | Tensor) -> float | Tensor:
    """Return a weight to divide by, which is 1 for a window without samples. Its gradients are zero."""
    return torch.where(weight > 0, weight, 1.0) if isinstance(weight, Tensor) else weight or 1
