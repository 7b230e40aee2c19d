"""Set the learning rate in phases, one after the other."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fit_core import Callback, RunnerState
from torch import Tensor

from .arguments import check_number
from .schedule import LRScheduler, ReduceLROnPlateau

__all__ = ["Phase", "PhasesScheduler"]

MODES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda fraction, power: 1 - fraction,
    "cos": lambda fraction, power: (1 + math.cos(math.pi * fraction)) / 2,
    "poly": lambda fraction, power: (1 - fraction) ** power,
}


@dataclass(frozen=True)
class Phase:
    """Describe a part of a schedule, in which the learning rate changes from one value to another, both included.

    Attributes:
        start: the epoch at which the phase starts, counted from 0. It may be inside an epoch (0.5).
        end: the epoch before which the phase ends.
        lr: the learning rates of the first and the last step, or one number for all steps.
        mode: the curve between them. `linear`, `cos` for half a cosine (Loshchilov and Hutter 2017, SGDR), or
            `poly` for `(1 - fraction) ** power` (Chen et al. 2017, DeepLab).
        power: the power of `poly`.

    Examples:
        >>> Phase(0, 2, lr=(0, 0.1))  # linear warmup over two epochs
    """

    start: float
    end: float
    lr: float | tuple[float, float]
    mode: str = "linear"
    power: float = 0.9

    def __post_init__(self) -> None:
        check_number("start", self.start, "[0, inf)")
        check_number("end", self.end, f"({self.start}, inf)")
        for lr in self.lr if isinstance(self.lr, (tuple, list)) and len(self.lr) == 2 else (self.lr,):
            check_number("lr", lr, "[0, inf)")
        check_number("power", self.power, "[0, inf)")
        if self.mode not in MODES:
            raise ValueError(f"expected mode to be one of {', '.join(MODES)}, got {self.mode!r}")

    def at(self, fraction: float) -> float:
        """Return the learning rate at a fraction of the phase, 0..1."""
        first, last = self.lr if isinstance(self.lr, (tuple, list)) else (self.lr, self.lr)
        return last + (first - last) * MODES[self.mode](fraction, self.power)


class PhasesScheduler(Callback):
    """Set the learning rate of each optimizer step from a list of phases.

    The first step of a phase has exactly the phase's first value, and its last step the last value. The schedule
    depends only on the epoch and the step in it, so a resumed run continues it, also with other batches.

    Several parameter groups keep the ratios that their learning rates have when the run starts. The group with the
    largest rate follows the phases: with groups at 1e-4 and 1e-2, the first trains at a hundredth of the phases' value.

    Args:
        phases: the phases in order, from epoch 0 to the end of the run or beyond, without gaps and overlaps.
        factors: multiplies the learning rate of each parameter group, one number per group. By default the ratio of
            its learning rate to the largest of all groups.

    Raises:
        ValueError: phases leave a gap, overlap, or end before the run. The number of factors is not that of the groups.
            All of several groups have a learning rate of 0, so that their ratios are unknown. The training loader does
            not have a len, and `steps_per_epoch` was not passed. Another callback sets the learning rate too.

    Examples:
        >>> PhasesScheduler([Phase(0, 2, lr=(0, 0.1)), Phase(2, 30, lr=(0.1, 0), mode="cos")])
    """

    def __init__(self, phases: Sequence[Phase], factors: Sequence[float] | None = None) -> None:
        if not isinstance(phases, Iterable) or not all(isinstance(phase, Phase) for phase in phases):
            raise TypeError(f"expected phases to be a list such as [Phase(0, 10, lr=(0.1, 0))], got {phases!r}")
        if not phases:
            raise ValueError("expected one phase or more, got an empty list. Pass [Phase(0, epochs, lr=...)]")
        if not isinstance(factors, (Iterable, type(None))):
            raise TypeError(f"expected factors to be a list of numbers, one per parameter group, got {factors!r}")
        factors = None if factors is None else list(factors)
        for factor in factors or ():
            check_number("factors", factor, "[0, inf)")
        ends = [0.0, *(phase.end for phase in phases)]
        for phase, end in zip(phases, ends, strict=False):
            if phase.start != end:
                what = "a gap" if phase.start > end else "an overlap"
                raise ValueError(
                    f"expected a phase that starts at {end:g}, got {phase}, with {what} between epochs "
                    f"{min(end, phase.start):g} and {max(end, phase.start):g}"
                )
        self.phases = list(phases)
        self.factors = factors
        self._starts: list[int] = []
        self._steps_per_epoch = 0
        self._factors: list[float] = []
        self._was_set: list[float] = []  # the learning rates of the last step

    def on_begin(self, state: RunnerState) -> None:
        """Count the steps of each phase, and compute the ratios of the groups."""
        for other in state.callbacks:
            if other is not self and isinstance(other, (PhasesScheduler, LRScheduler, ReduceLROnPlateau)):
                raise ValueError(
                    f"expected one callback that sets the learning rate, got PhasesScheduler and {type(other).__name__}"
                    ". PhasesScheduler sets it at every step, so remove the other one"
                )
        lrs, end = [float(group["lr"]) for group in state.optimizer.param_groups], self.phases[-1].end
        if self.factors is not None:
            self._factors = list(self.factors)
        elif lrs != self._was_set:  # another fit of this callback: the last step may have been at 0
            self._factors = [lr / max(lrs) for lr in lrs] if any(lrs) else [1.0] * (len(lrs) == 1)
        if self._factors:  # Otherwise unknown, unless a resume restores them.
            self._check_groups(len(lrs))
        if end < state.num_epochs:
            raise ValueError(f"expected phases for {state.num_epochs} epochs, got {end:g}. Add a phase")
        steps = self._steps_per_epoch = state.total_steps // state.num_epochs
        self._starts = [round(phase.start * steps) for phase in self.phases] + [round(end * steps)]

    def on_loader_begin(self, state: RunnerState) -> None:
        """Check that no group was added."""
        if state.is_train:
            self._check_groups(len(state.optimizer.param_groups))

    def on_batch_begin(self, state: RunnerState) -> None:
        """Set the learning rate of the step that this batch belongs to."""
        if state.is_train:
            lr = self.lr(state.epoch * self._steps_per_epoch + state.batch_idx // state.accumulate_steps)
            self._was_set = [lr * factor for factor in self._factors]
            for group, value in zip(state.optimizer.param_groups, self._was_set, strict=True):
                if isinstance(group["lr"], Tensor):  # as captured graphs need it
                    group["lr"].fill_(value)
                else:
                    group["lr"] = value

    def state_dict(self) -> dict[str, Any]:
        """Return the factors of the groups, and the phases as text."""
        return {"factors": self._factors, "phases": list(map(str, self.phases))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the ratios: those of the loaded learning rates are rounded, or unknown where they are 0.

        Phases and factors of the program replace the saved ones, with a warning if they differ.
        """
        phases = list(map(str, self.phases))
        changed: dict[str, tuple[list[Any], list[Any]]] = {"phases": (state_dict["phases"], phases)}
        if self.factors is None:
            self._factors = list(state_dict["factors"])
        else:
            changed["factors"] = (list(state_dict["factors"]), self._factors)
        for name, (then, now) in changed.items():
            if then != now:
                old, new = ("; ".join(map(str, values)) for values in (then, now))
                warnings.warn(f"PhasesScheduler is resumed with other {name}: {old} -> {new}", stacklevel=2)

    def lr(self, step: int) -> float:
        """Return the learning rate of an optimizer step, counted from 0, for a factor of 1."""
        number = min(bisect_right(self._starts, step), len(self.phases)) - 1
        first, after = self._starts[number : number + 2]
        return self.phases[number].at(min(1.0, (step - first) / (after - first - 1)) if after - first > 1 else 1.0)

    def _check_groups(self, groups: int) -> None:
        if not self._factors:
            raise ValueError(
                f"expected a learning rate above 0, got 0 in all {groups} parameter groups, so their ratios are "
                "unknown. Pass factors=[...], one number per group"
            )
        if groups != len(self._factors):
            raise ValueError(
                f"expected one factor per parameter group, got {len(self._factors)} factors and {groups} parameter "
                "groups. Create all groups before fit, and pass as many factors"
            )
