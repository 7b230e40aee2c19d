"""Note the epochs in which a result reached given values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fit_core import Callback, RunnerState

__all__ = ["Milestones"]


class Milestones(Callback):
    """Print when a result first reaches each of some values, and log as `milestones` how many it has reached.

    Epochs without validation are skipped if the result comes from validation. Prints on rank 0 only.

    Args:
        monitor: the name of a result, as in the history. Higher is better.
        values: the values to reach, in any order.

    Attributes:
        reached: the epoch, from 1, in which each value was first reached.

    Raises:
        ValueError: at the end of an epoch, if there is no result with this name.

    Examples:
        >>> Runner(model, optimizer, criterion, [accuracy], [Milestones("val/accuracy", [0.8, 0.9])])
    """

    def __init__(self, monitor: str, values: Iterable[float]) -> None:
        self.monitor = monitor
        self.values = sorted(values)
        self.reached: dict[float, int] = {}

    def on_begin(self, state: RunnerState) -> None:
        """Start from scratch. In a resumed run, `load_state_dict` is called after this."""
        self.reached = {}

    def on_epoch_end(self, state: RunnerState) -> None:
        """Compare the result with the values.

        The results in `state.logs` are those of all processes and the same on each, so every process decides alike.
        What a callback counts itself differs. Sum it with `torch.distributed.all_reduce`, called on every rank.
        """
        if self.monitor not in state.logs:
            if self.monitor.startswith("val/") and "val/loss" not in state.logs:
                return
            seen = ", ".join(state.logs)
            raise ValueError(f"expected a result of the epoch as monitor, got {self.monitor!r}. Pass one of {seen}")
        for value in self.values:
            if value not in self.reached and state.logs[self.monitor] >= value:
                self.reached[value] = state.epoch + 1
                if state.rank == 0:  # every rank remembers, one prints
                    print(f"epoch {state.epoch + 1}: {self.monitor} has reached {value}")
        state.logs["milestones"] = float(len(self.reached))

    def state_dict(self) -> dict[str, Any]:
        """Return what was reached. A state may contain tensors, numbers, strings, and dicts and lists of them."""
        return {"reached": dict(self.reached)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.reached = dict(state_dict["reached"])
