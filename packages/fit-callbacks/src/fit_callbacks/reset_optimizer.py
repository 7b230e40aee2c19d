"""Reset the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable

from fit_core import Callback, RunnerState

from .arguments import check_whole

__all__ = ["ResetOptimizer"]


class ResetOptimizer(Callback):
    """Reset the optimizer's state (momentum, second moments) after some epochs. Settings such as lr are kept.

    Args:
        after: the number of epochs after which to reset, or several numbers.

    Raises:
        TypeError: a number is not whole.
        ValueError: a number is below 1.

    Examples:
        >>> ResetOptimizer([10, 20])  # for warm restarts, as in SGDR
    """

    def __init__(self, after: int | Iterable[int]) -> None:
        self.after = frozenset(after if isinstance(after, Iterable) else [after])
        for epoch in self.after:
            check_whole("after", epoch, 1)

    def on_epoch_end(self, state: RunnerState) -> None:
        """Reset the state after these epochs."""
        if state.epoch + 1 in self.after:
            state.optimizer.state.clear()
