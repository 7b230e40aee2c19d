"""The epochs in which a result reached what one hoped for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fit_core import Callback, RunnerState

__all__ = ["Milestones"]


class Milestones(Callback):
    """Tells when a result first reaches each of some values, and logs as ``milestones`` how many it has reached.

    An epoch that is not validated is passed over when a result of validation is watched. Prints on rank 0 only.

    Args:
        monitor: the name of a result, as in the history. Larger is better.
        values: what it may reach, in any order.

    Attributes:
        reached: the epoch, from 1, in which each value was first reached.

    Raises:
        ValueError: at the end of an epoch, when there is no result of this name.

    Example:
        >>> Runner(model, optimizer, criterion, [CalibrationError()], [Milestones("val/ECE", [0.1, 0.2])])
    """

    def __init__(self, monitor: str, values: Iterable[float]) -> None:
        self.monitor = monitor
        self.values = sorted(values)
        self.reached: dict[float, int] = {}

    def on_begin(self, state: RunnerState) -> None:
        """Nothing is reached. In a run that is resumed, :meth:`load_state_dict` comes after this."""
        self.reached = {}

    def on_epoch_end(self, state: RunnerState) -> None:
        """Compare.

        The results in ``state.logs`` are of all processes and alike on each: what is decided by them needs no message.
        What a callback counts by itself differs, and needs ``torch.distributed.all_reduce``, called on every rank.
        """
        if self.monitor not in state.logs:
            if self.monitor.startswith("val/") and "val/loss" not in state.logs:
                return
            seen = ", ".join(state.logs)
            raise ValueError(f"Milestones cannot find {self.monitor!r}; the results of this epoch are {seen}")
        for value in self.values:
            if value not in self.reached and state.logs[self.monitor] >= value:
                self.reached[value] = state.epoch + 1
                if state.rank == 0:  # every rank remembers, one speaks
                    print(f"epoch {state.epoch + 1}: {self.monitor} has reached {value}")
        state.logs["milestones"] = float(len(self.reached))

    def state_dict(self) -> dict[str, Any]:
        """What was reached. A state holds tensors, numbers, strings, and dicts, lists and tuples of them."""
        return {"reached": dict(self.reached)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.reached = dict(state_dict["reached"])
