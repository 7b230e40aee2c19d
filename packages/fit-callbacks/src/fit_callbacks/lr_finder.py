"""Find a learning rate to start with."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from fit_core import Callback, RunnerState, samplers, unwrap
from torch import Generator, nn

from .arguments import check_number, check_whole
from .lazy import refuse_lazy
from .ranks import from_rank_zero

if TYPE_CHECKING:
    from .figure import Figure

__all__ = ["LRFinder"]


class LRFinder(Callback):
    """Train with a learning rate that grows each step, and suggest one (Smith 2017, arXiv:1506.01186).

    The rate grows exponentially from `min_lr` to `max_lr`. The run ends there, or where the loss has exploded. Then
    model, criterion, optimizer, scaler and random generators, also those of the training loader, are restored exactly,
    and `suggestion` is the rate at which the smoothed loss fell fastest. Use a separate Runner without other
    callbacks, and remove it for the real training.

    Args:
        min_lr: the first rate, above 0.
        max_lr: the last.
        steps: the number of optimizer steps of the search, at least 10. Fewer if the run is shorter.
        smoothing: the weight of earlier losses in the smoothed loss, 0..1, 1 excluded.
        divergence_factor: the run ends when the smoothed loss is this many times the best.

    Attributes:
        lrs: the rates of the curve.
        losses: its losses, smoothed.
        suggestion: a learning rate, or None if the loss never fell.

    Raises:
        ValueError: an argument is out of range, or the run has less than 10 steps.

    Examples:
        >>> finder = LRFinder()
        >>> Runner(model, optimizer, criterion, callbacks=[finder]).fit(loader, steps_per_epoch=100)
        >>> finder.plot("lr.png")
        >>> finder.suggestion
        0.03
    """

    def __init__(
        self,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        *,
        steps: int = 100,
        smoothing: float = 0.8,
        divergence_factor: float = 4.0,
    ) -> None:
        check_number("min_lr", min_lr, "(0, inf)")
        check_number("max_lr", max_lr, f"({min_lr}, inf)")
        check_whole("steps", steps, 10)
        check_number("smoothing", smoothing, "[0, 1)")
        check_number("divergence_factor", divergence_factor, "(1, inf]")
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.steps = steps
        self.smoothing = smoothing
        self.divergence_factor = divergence_factor
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.suggestion: float | None = None
        self._before: list[Any] | None = None  # the states of all parts, while a search runs

    def on_begin(self, state: RunnerState) -> None:
        """Save everything that the search will change."""
        for module in _modules(state):
            refuse_lazy(module, "LRFinder")
        self._steps = min(self.steps, state.total_steps)
        if self._steps < 10:
            raise ValueError(
                f"expected a run of 10 optimizer steps or more, got {state.total_steps}. "
                f"Pass steps_per_epoch={self.steps} to fit"
            )
        self._before = copy.deepcopy([part.state_dict() for part in _parts(state)])
        self._buffers = [{name: b.clone() for name, b in module.named_buffers()} for module in _modules(state)]
        self._random = _random_states(state)
        self.lrs, self.losses, self.suggestion, self._average, self._batches = [], [], None, 0.0, 0

    def on_batch_begin(self, state: RunnerState) -> None:
        """Set the learning rate."""
        if state.is_train:
            fraction = state.global_step / (self._steps - 1)
            for group in state.optimizer.param_groups:
                group["lr"] = self.min_lr * (self.max_lr / self.min_lr) ** fraction

    def on_batch_end(self, state: RunnerState) -> None:
        """Record the loss, and stop when it explodes."""
        if not state.is_train or state.loss is None:
            return
        loss = from_rank_zero(state.loss.item())
        self._batches += 1
        self._average = self.smoothing * self._average + (1 - self.smoothing) * loss
        if not state.is_optimizer_step:
            return
        smooth = self._average / (1 - self.smoothing**self._batches)
        if not math.isfinite(smooth) or (self.losses and smooth > self.divergence_factor * abs(min(self.losses))):
            state.should_stop = True
            return
        self.lrs.append(float(state.optimizer.param_groups[0]["lr"]))
        self.losses.append(smooth)
        if state.global_step >= self._steps:
            state.should_stop = True

    def on_end(self, state: RunnerState) -> None:
        """Restore everything, and suggest a rate. Do nothing if the run ended before the search began."""
        saved, self._before = self._before, None
        if saved is None:
            return
        for module, buffers in zip(_modules(state), self._buffers, strict=True):
            for name, value in buffers.items():  # also those that no state has, and those that have grown
                module.get_buffer(name).data = value
        for part, state_dict in zip(_parts(state), saved, strict=True):
            part.load_state_dict(state_dict)
        for group in state.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for restore, before in self._random:
            restore(before)
        slopes = [after - before for before, after in pairwise(self.losses)]
        if slopes and min(slopes) < 0:
            self.suggestion = self.lrs[slopes.index(min(slopes))]

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the curve and the suggestion. Needs matplotlib. A notebook shows the figure.

        Args:
            path: where to save the picture. Its ending selects the format. Folders are made.

        Raises:
            ValueError: the finder has not run yet.
        """
        if not self.losses:
            raise ValueError("expected a curve, got none yet. Pass the finder to a Runner as a callback, and call fit")
        from .figure import Figure

        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses)
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="C1", linestyle="--", label=f"suggestion {self.suggestion:.1e}")
            axes.legend()
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss, smoothed")
        axes.grid(alpha=0.3)
        figure.save(path)
        return figure


def _modules(state: RunnerState) -> list[nn.Module]:
    """Return the model, and the criterion if it is a module."""
    return [unwrap(part) for part in (state.model, state.criterion) if isinstance(part, nn.Module)]


def _parts(state: RunnerState) -> list[Any]:
    """Return everything with a state that a search changes."""
    return [*_modules(state), state.optimizer, state.grad_scaler]


def _random_states(state: RunnerState) -> list[tuple[Callable[[Any], Any], Any]]:
    """Return for each random generator of a run a function that restores it, and its state."""
    loader = state.train_loader
    holders = (loader, *samplers(loader))
    own = {generator for holder in holders if isinstance(generator := getattr(holder, "generator", None), Generator)}
    states: list[tuple[Callable[[Any], Any], Any]] = [(generator.set_state, generator.get_state()) for generator in own]
    states += [(random.setstate, random.getstate()), (torch.set_rng_state, torch.get_rng_state())]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"].random
        states.append((numpy.set_state, numpy.get_state()))
    if state.device.type != "cpu":
        accelerator = torch.get_device_module(state.device)
        states.append((accelerator.set_rng_state, accelerator.get_rng_state()))
    return states
