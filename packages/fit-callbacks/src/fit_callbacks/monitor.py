"""Which number of the logs a callback watches, and whether it has become better."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

from fit_core import RunnerState

__all__ = ["Best", "check_monitor", "monitored"]


def check_monitor(state: RunnerState, monitor: str) -> None:
    """Refuse, before the first step, a validation result in a run that does not validate.

    Raises:
        ValueError: there is no ``val_loader``.
    """
    if monitor.startswith("val/") and state.val_loader is None:
        raise ValueError(
            f"monitor {monitor!r} is a result of validation, and this run has none: "
            f"pass val_loader=... to fit, or monitor 'train/{monitor.removeprefix('val/')}'"
        )


def monitored(state: RunnerState, monitor: str) -> float | None:
    """This epoch's value of ``monitor``; None in an epoch that was not validated (``validate_every``).

    Args:
        state: at the end of an epoch.
        monitor: a key of ``state.logs``. ``loss`` is short for ``val/loss`` in a run that validates, and for
            ``train/loss`` in one that does not.

    Raises:
        ValueError: there is no such key; the message names those there are, and what is near.
    """
    key = monitor
    if monitor == "loss":
        key = "train/loss" if state.val_loader is None else "val/loss"
    if key in state.logs:
        return state.logs[key]
    check_monitor(state, monitor)
    if key.startswith("val/") and not any(name.startswith("val/") for name in state.logs):
        return None
    near = get_close_matches(monitor, state.logs, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"monitor {monitor!r} not found; {hint}there are: {', '.join(state.logs)}")


class Best:
    """The best value so far. One that is nan or infinite is never better.

    Args:
        mode: ``min`` where less is better, ``max`` where more is.
        min_delta: by how much a value must be better to count, 0 or more.

    Raises:
        ValueError: the mode is neither.
    """

    def __init__(self, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' (less is better) or 'max' (more is better), got {mode!r}")
        if min_delta < 0:
            raise ValueError(f"min_delta must be 0 or more, got {min_delta}")
        self.sign = 1.0 if mode == "min" else -1.0
        self.min_delta = min_delta
        self.value: float | None = None

    def update(self, value: float) -> bool:
        """Whether ``value`` is better than the best; it is the best from now on then."""
        if not math.isfinite(value):
            return False
        if self.value is not None and self.sign * (self.value - value) <= self.min_delta:
            return False
        self.value = value
        return True

    def state_dict(self) -> dict[str, Any]:
        """The value."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.value = state_dict["value"]
