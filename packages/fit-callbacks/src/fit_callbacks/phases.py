"""A learning rate drawn by hand: phases of an epoch or more, one after the other."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fit_core import Callback, RunnerState

__all__ = ["Phase", "PhasesScheduler"]

MODES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda fraction, power: 1 - fraction,
    "cos": lambda fraction, power: (1 + math.cos(math.pi * fraction)) / 2,
    "poly": lambda fraction, power: (1 - fraction) ** power,
}


@dataclass(frozen=True)
class Phase:
    """A fraction of a schedule, in which the learning rate goes from one value to another, both reached.

    Attributes:
        start: the epoch at which it begins, counted from 0; may lie within an epoch (0.5).
        end: the epoch before which it ends.
        lr: the learning rate of its first and of its last step; a number where it stays.
        mode: the way between them. ``linear``; ``cos``, half a cosine (Loshchilov and Hutter 2017, SGDR); ``poly``,
            ``(1 - fraction) ** power`` (Chen et al. 2017, DeepLab).
        power: of ``poly``.
    """

    start: float
    end: float
    lr: float | tuple[float, float]
    mode: str = "linear"
    power: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a phase begins at epoch 0 or later and ends after its start, got {self}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    def at(self, fraction: float) -> float:
        """The learning rate at a fraction of the way, 0..1."""
        first, last = self.lr if isinstance(self.lr, (tuple, list)) else (self.lr, self.lr)
        return last + (first - last) * MODES[self.mode](fraction, self.power)


class PhasesScheduler(Callback):
    """Sets the learning rate of each optimizer step from a list of phases.

    The first step of a phase has the phase's first value, its last step the last value, exactly. The schedule is a
    function of the number of the step, so a resumed run goes on in it.

    Args:
        phases: in order, the first from epoch 0, without gaps and overlaps, to the end of the run or beyond.
        factors: what each parameter group's learning rate is multiplied by, one number a group; None for 1.

    Raises:
        ValueError: there is a gap or an overlap; the phases end before the run; there are more or fewer factors than
            groups; the training loader has no len, and ``steps_per_epoch`` was not given.

    Example:
        >>> PhasesScheduler([Phase(0, 2, lr=(0, 0.1)), Phase(2, 30, lr=(0.1, 0), mode="cos")])
    """

    def __init__(self, phases: Sequence[Phase], factors: Sequence[float] | None = None) -> None:
        if not phases:
            raise ValueError("phases is empty: give at least one Phase(start, end, lr)")
        ends = [0.0, *(phase.end for phase in phases)]
        for phase, end in zip(phases, ends, strict=False):
            if phase.start != end:
                what = "a gap" if phase.start > end else "an overlap"
                raise ValueError(
                    f"there is {what} between epochs {min(end, phase.start):g} and {max(end, phase.start):g}: "
                    f"expected a phase that starts at {end:g}, got {phase}"
                )
        self.phases = list(phases)
        self.factors = factors
        self._starts: list[int] = []

    def on_begin(self, state: RunnerState) -> None:
        """Count the steps of each phase."""
        groups, end = len(state.optimizer.param_groups), self.phases[-1].end
        if self.factors is not None and len(self.factors) != groups:
            raise ValueError(f"there are {len(self.factors)} factors and {groups} parameter groups: give one a group")
        if end < state.num_epochs:
            raise ValueError(f"the phases end with epoch {end:g}, the run has {state.num_epochs}: add a phase")
        steps_per_epoch = state.total_steps / state.num_epochs
        self._starts = [round(phase.start * steps_per_epoch) for phase in self.phases] + [round(end * steps_per_epoch)]

    def on_batch_begin(self, state: RunnerState) -> None:
        """Set the learning rate of the step that this batch belongs to."""
        if state.is_train:
            lr = self.lr(state.global_step)
            for number, group in enumerate(state.optimizer.param_groups):
                group["lr"] = lr if self.factors is None else lr * self.factors[number]

    def lr(self, step: int) -> float:
        """The learning rate of an optimizer step, counted from 0."""
        number = min(bisect_right(self._starts, step), len(self.phases)) - 1
        first, after = self._starts[number : number + 2]
        return self.phases[number].at(min(1.0, (step - first) / (after - first - 1)) if after - first > 1 else 1.0)
