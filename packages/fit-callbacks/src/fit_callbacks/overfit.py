"""Train on one batch, the first test of a new model."""

from __future__ import annotations

from typing import Any

import torch
from fit_core import Callback, RunnerState
from torch import Tensor

from .arguments import check_whole

__all__ = ["BatchOverfit"]


class BatchOverfit(Callback):
    """Train on the first batches again and again, and ignore the others.

    If the loss does not approach zero, there is a mistake in the model or in the loss. Validation is not changed.

    Args:
        batches: how many batches to keep, 1 or more.

    Raises:
        ValueError: `batches` is below 1.

    Examples:
        >>> Runner(model, optimizer, criterion, callbacks=[BatchOverfit()]).fit(loader, epochs=20)
    """

    def __init__(self, batches: int = 1) -> None:
        check_whole("batches", batches, 1)
        self.batches = batches
        self._kept: list[tuple[Any, ...]] = []
        self._next = 0

    def on_begin(self, state: RunnerState) -> None:
        """Forget the batches of an earlier run."""
        self._kept, self._next = [], 0

    def on_batch_begin(self, state: RunnerState) -> None:
        """Keep the batch, or replace it."""
        if not state.is_train:
            return
        if len(self._kept) < self.batches:
            self._kept.append((state.input, state.target, state.batch_size, state.weight))
        kept = self._kept[self._next] = _moved(self._kept[self._next], state.device)
        state.input, state.target, state.batch_size, state.weight = kept
        self._next = (self._next + 1) % self.batches

    def state_dict(self) -> dict[str, Any]:
        """Return the batches. They should contain only tensors and numbers."""
        return {"kept": [list(batch) for batch in self._kept], "next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the batches, which are on the CPU if they come from a file."""
        self._kept, self._next = [tuple(batch) for batch in state_dict["kept"]], state_dict["next"]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return type(value)(_moved(part, device) for part in value) if type(value) in (list, tuple) else value
