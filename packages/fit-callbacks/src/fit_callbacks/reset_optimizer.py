"""An optimizer without a past."""

from __future__ import annotations

from collections.abc import Iterable

from fit_core import Callback, RunnerState

from .arguments import check_whole

__all__ = ["ResetOptimizer"]


class ResetOptimizer(Callback):
    """Forgets what the optimizer remembers (momentum, second moments) after given epochs; settings such as lr stay.

    Args:
        after: after how many epochs; several numbers for several times.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> ResetOptimizer([10, 20])  # for warm restarts, as SGDR's
    """

    def __init__(self, after: int | Iterable[int]) -> None:
        self.after = frozenset(after if isinstance(after, Iterable) else [after])
        for epoch in self.after:
            check_whole("after", epoch, 1)

    def on_epoch_end(self, state: RunnerState) -> None:
        """Forget."""
        if state.epoch + 1 in self.after:
            state.optimizer.state.clear()
