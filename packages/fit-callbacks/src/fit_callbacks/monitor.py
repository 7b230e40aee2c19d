"""Watch one result of a run: find its name in the logs, which way is better, and the best value so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from fit_core import RunnerState, metric_name

from .arguments import check_number

__all__ = ["Best", "Monitor"]


class Monitor:
    """Watch a result for a callback.

    Args:
        name: a key of `state.logs`, such as `val/Acc@1`. `loss` is short for `val/loss` in a run that
            validates, and for `train/loss` in one that does not.
        mode: `min` if lower is better, `max` if higher is. `auto` takes `min` for a loss, and asks a metric's
            `higher_is_better`.
        min_delta: by how much a value must be better to count, 0 or more.

    Attributes:
        key: the name in the logs, known after a run has started.
        best: the best value so far.

    Raises:
        TypeError: the name is not a string.
        ValueError: the mode or `min_delta` is invalid.
    """

    def __init__(self, name: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        if not isinstance(name, str):
            raise TypeError(f'expected monitor to be a name in the logs, such as "val/loss", got {name!r}')
        if mode not in ("auto", "min", "max"):
            raise ValueError(
                f"expected mode to be 'min' (lower is better), 'max' (higher is better) or 'auto', got {mode!r}"
            )
        self.name = name
        self.key = name
        self.mode = mode
        self.best = Best("min" if mode == "auto" else mode, min_delta)

    def __repr__(self) -> str:
        return repr(self.name)

    @property
    def sign(self) -> float:
        """1 if lower is better, -1 if higher is."""
        return self.best.sign

    def begin(self, state: RunnerState) -> None:
        """Find the result in a run that starts, and forget the best value of another run.

        Raises:
            ValueError: the run does not have this result, or it is unknown which way is better. The message says what
                to type.
        """
        self.key = self.name
        if self.name == "loss":
            self.key = "train/loss" if state.val_loader is None else "val/loss"
        self.best = Best(self._direction(state), self.best.min_delta)

    def value(self, state: RunnerState) -> float | None:
        """Return this epoch's value, or None if it has no results of that loader.

        It was not validated then (`validate_every`), or was resumed on another number of processes when its training
        was complete.

        Raises:
            ValueError: the result does not exist. The message lists the results that do.
        """
        if self.key in state.logs:
            return state.logs[self.key]
        loader = self.key.partition("/")[0]
        if loader in ("train", "val") and not any(name.startswith(f"{loader}/") for name in state.logs):
            return None
        raise ValueError(self._not_found(list(state.logs)))

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and of what it is."""
        return {"name": self.key, "sign": self.sign, **self.best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> bool:
        """Restore the best value. Return False, with a warning, if it is that of another result."""
        if (state_dict["name"], state_dict["sign"]) != (self.key, self.sign):
            saved, own = (
                f"{name} ({'lower' if sign > 0 else 'higher'} is better)"
                for name, sign in ((state_dict["name"], state_dict["sign"]), (self.key, self.sign))
            )
            warnings.warn(
                f"the run was saved with monitor {saved} and is resumed with {own}. The best value starts from scratch",
                stacklevel=2,
            )
            return False
        self.best.load_state_dict(state_dict)
        return True

    def _direction(self, state: RunnerState) -> str:
        directions = _directions(state)
        if self.key.startswith("val/") and state.val_loader is None:
            raise ValueError(
                f"monitor {self.name!r} is a result of validation, and this run does not validate. "
                f"Pass val_loader=... to fit, or monitor 'train/{self.key.removeprefix('val/')}'"
            )
        if self.mode != "auto":
            if self.key.startswith(("val_", "train_")):  # Keras'
                raise ValueError(self._not_found(list(directions)))
            known = {True: "max", False: "min", None: self.mode}[directions.get(self.key)]
            if known != self.mode:
                warnings.warn(
                    f"mode={self.mode!r} looks for the worst epoch: a {'higher' if known == 'max' else 'lower'} "
                    f"{self.key} is better. Leave mode out, or pass mode={known!r}",
                    stacklevel=2,
                )
            return self.mode  # The result of a callback, or one of several losses, cannot be known yet.
        if self.key not in directions:
            raise ValueError(
                f"{self._not_found(list(directions))}. If it comes from a callback or is one of several losses, pass "
                "mode='min' or mode='max'"
            )
        higher_is_better = directions[self.key]
        if higher_is_better is None:
            raise ValueError(
                f"it is unknown whether a higher or a lower {self.key} is better. Pass mode='max' or mode='min', or "
                "set higher_is_better on the metric"
            )
        return "max" if higher_is_better else "min"

    def _not_found(self, names: list[str]) -> str:
        lowered = {name.lower(): name for name in names}
        asked = self.key.lower().replace("val_", "val/").replace("train_", "train/")
        close = get_close_matches(asked, lowered, n=1, cutoff=0.5)
        hint = f"Did you mean {lowered[close[0]]!r}? " if close else ""
        return f"monitor {self.name!r} not found. {hint}There are: {', '.join(names)}"


class Best:
    """Keep the best value so far. A value that is nan or infinite is never better.

    Args:
        mode: `min` if lower is better, `max` if higher is.
        min_delta: by how much a value must be better to count, 0 or more.

    Raises:
        ValueError: `min_delta` is negative.
    """

    def __init__(self, mode: str, min_delta: float = 0.0) -> None:
        check_number("min_delta", min_delta, "[0, inf)")
        self.sign = 1.0 if mode == "min" else -1.0
        self.min_delta = min_delta
        self.value: float | None = None

    def update(self, value: float) -> bool:
        """Return whether `value` is better than the best, and keep it then."""
        if not math.isfinite(value):
            return False
        if self.value is not None and self.sign * (self.value - value) <= self.min_delta:
            return False
        self.value = value
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the value."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the value."""
        self.value = state_dict["value"]


def _directions(state: RunnerState) -> dict[str, bool | None]:
    """Return the results that the loaders of a run are known to have, and whether higher is better."""
    parts = [part for metric in state.metrics for part in _parts(metric)]
    directions = {"loss": False, **{name: getattr(metric, "higher_is_better", None) for name, metric in parts}}
    prefixes = ("train",) if state.val_loader is None else ("train", "val")
    return {f"{prefix}/{name}": value for prefix in prefixes for name, value in directions.items()}


def _parts(metric: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names of a metric's values, each with what knows its direction."""
    if hasattr(metric, "items"):  # torchmetrics' MetricCollection
        yield from metric.items()
        return
    names = getattr(metric, "names", None)  # of several values, such as Accuracy(1, 5)
    for name in names if isinstance(names, (list, tuple)) else [metric_name(metric)]:
        yield name, metric
