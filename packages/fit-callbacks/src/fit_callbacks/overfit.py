"""The first test of any new model: can it learn one batch by heart?"""

from __future__ import annotations

from typing import Any

from fit_core import Callback, RunnerState

from .arguments import check_whole

__all__ = ["BatchOverfit"]


class BatchOverfit(Callback):
    """Trains on the first batches again and again, whatever the loader gives.

    A model whose loss then does not go towards zero has a mistake in it, or in its loss. Validation is left alone.

    Args:
        batches: how many batches to keep, 1 or more.

    Raises:
        ValueError: it is less.

    Example:
        >>> Runner(model, optimizer, criterion, callbacks=[BatchOverfit()]).fit(loader, epochs=20)
    """

    def __init__(self, batches: int = 1) -> None:
        check_whole("batches", batches, 1)
        self.batches = batches
        self._kept: list[tuple[Any, ...]] = []
        self._next = 0

    def on_begin(self, state: RunnerState) -> None:
        """A new run keeps other batches."""
        self._kept, self._next = [], 0

    def on_batch_begin(self, state: RunnerState) -> None:
        """Keep the batch, or replace it."""
        if not state.is_train:
            return
        if len(self._kept) < self.batches:
            self._kept.append((state.input, state.target, state.batch_size, state.weight))
        state.input, state.target, state.batch_size, state.weight = self._kept[self._next]
        self._next = (self._next + 1) % self.batches

    def state_dict(self) -> dict[str, Any]:
        """The batches; they should hold tensors and numbers only."""
        return {"kept": [list(batch) for batch in self._kept], "next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with those batches."""
        self._kept, self._next = [tuple(batch) for batch in state_dict["kept"]], state_dict["next"]
