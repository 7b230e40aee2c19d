"""What metrics have in common: a few sums on the device, and a formula over them."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["SumMetric"]


class SumMetric:
    """Base of metrics that are a formula over sums, and so right on any split of the data and number of processes.

    A subclass names its sums, adds to them in ``update`` and divides in ``compute``::

        class ErrorRate(SumMetric):
            def __init__(self):
                super().__init__("error", wrong=torch.long, samples=torch.long)

            def update(self, output, target):
                self.wrong += (output.argmax(1) != target).sum()
                self.samples += len(target)

            def compute(self):
                return self.wrong / self.samples

    Args:
        name: the name in the logs.
        **sums: the dtype of each sum, by name. They are 0-dim tensors and attributes of the metric.
    """

    def __init__(self, name: str, **sums: torch.dtype) -> None:
        self.name = name
        self._sums = sums
        self._device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        for name, dtype in self._sums.items():
            setattr(self, name, torch.zeros((), dtype=dtype, device=self._device))

    def to(self, device: torch.device | str) -> SumMetric:
        """Move the sums to ``device``."""
        self._device = torch.device(device)
        for name in self._sums:
            setattr(self, name, getattr(self, name).to(self._device))
        return self

    def all_reduce(self) -> None:
        """Sum over all processes; to be called by each of them, once, before ``compute``."""
        for name in self._sums:
            torch.distributed.all_reduce(getattr(self, name))

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {name: getattr(self, name).clone() for name in self._sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the sums from what :meth:`state_dict` gave, on any device."""
        for name in self._sums:
            setattr(self, name, state_dict[name].to(self._device))
