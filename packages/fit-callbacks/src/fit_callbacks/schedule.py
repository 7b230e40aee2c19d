"""Learning rates that follow a schedule of torch's, or wait for a plateau."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fit_core import Callback, RunnerState
from torch.optim import lr_scheduler

from .monitor import Monitor
from .ranks import from_rank_zero

__all__ = ["LRScheduler", "ReduceLROnPlateau"]


class LRScheduler(Callback):
    """Steps any scheduler of torch after each optimizer step, or after each epoch.

    It is not stepped when the gradient scaler (fp16) skipped the optimizer's step. On resume the schedule goes on where
    it was.

    Args:
        scheduler: a scheduler over the run's optimizer; or a function ``f(optimizer, total_steps)`` that makes one when
            the run begins, for schedules that want to know the number of optimizer steps of the run.
        interval: ``step`` or ``epoch``: after what to step it.

    Raises:
        ValueError: the interval is neither; the scheduler is of another optimizer; ``total_steps`` is asked for and the
            loader has no len (the message says what to pass to ``fit``).

    Example:
        >>> from torch.optim.lr_scheduler import OneCycleLR, StepLR
        >>> LRScheduler(StepLR(optimizer, 10), interval="epoch")
        >>> LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 0.1, total_steps=steps + 1))
    """

    def __init__(
        self,
        scheduler: lr_scheduler.LRScheduler | Callable[[torch.optim.Optimizer, int], lr_scheduler.LRScheduler],
        interval: str = "step",
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ValueError(f"interval must be 'step' or 'epoch', got {interval!r}")
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            raise ValueError("torch's ReduceLROnPlateau needs a value: use fit_callbacks.ReduceLROnPlateau(monitor)")
        self.scheduler = scheduler if isinstance(scheduler, lr_scheduler.LRScheduler) else None
        self.interval = interval
        self._make = None if isinstance(scheduler, lr_scheduler.LRScheduler) else scheduler
        self._scale = 1.0

    def on_begin(self, state: RunnerState) -> None:
        """Make the scheduler, if it is to be made."""
        if self._make is not None:
            self.scheduler = self._make(state.optimizer, state.total_steps)
        assert self.scheduler is not None
        if self.scheduler.optimizer is not state.optimizer:
            raise ValueError("the scheduler was made for another optimizer than the Runner's: make it for this one")

    def on_epoch_begin(self, state: RunnerState) -> None:
        """See how the gradients are scaled now; skipped steps show in it."""
        self._scale = state.grad_scaler.get_scale()

    def on_batch_end(self, state: RunnerState) -> None:
        """Step after the optimizer has."""
        if self.interval == "step" and state.is_train and state.is_optimizer_step and not self._was_skipped(state):
            self._step()

    def on_epoch_end(self, state: RunnerState) -> None:
        """Step after the epoch."""
        if self.interval == "epoch":
            self._step()

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state, and what it has set in the optimizer."""
        assert self.scheduler is not None
        groups = self.scheduler.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        return {"scheduler": self.scheduler.state_dict(), "settings": settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the schedule. To make a scheduler changes the optimizer's settings, so these come back as well."""
        assert self.scheduler is not None
        self.scheduler.load_state_dict(state_dict["scheduler"])
        for group, settings in zip(self.scheduler.optimizer.param_groups, state_dict["settings"], strict=True):
            group.update(settings)

    def _step(self) -> None:
        assert self.scheduler is not None
        self.scheduler.step()

    def _was_skipped(self, state: RunnerState) -> bool:
        if not state.grad_scaler.is_enabled():
            return False
        before, self._scale = self._scale, state.grad_scaler.get_scale()  # waits for the device, as the scaler has
        return self._scale < before


class ReduceLROnPlateau(Callback):
    """Reduces the learning rate when the monitored value no longer improves, by torch's ReduceLROnPlateau.

    Every process takes the decision of rank 0. Epochs without validation (``validate_every``) do not count; nan is
    never an improvement.

    Args:
        monitor: a key of the logs, such as ``val/Acc@1``. ``loss`` is ``val/loss``, or ``train/loss`` without
            validation.
        mode: ``min`` if lower is better, ``max`` if higher is. ``auto`` takes ``min`` for a loss, and asks a metric's
            ``higher_is_better``.
        **options: of ``torch.optim.lr_scheduler.ReduceLROnPlateau``: ``factor`` (0.1) to multiply the learning rate by
            after more than ``patience`` (10) epochs without an improvement, ``threshold`` (1e-4) and ``threshold_mode``
            (``rel``) that define an improvement, ``cooldown`` (0), ``min_lr`` (0).

    Raises:
        TypeError: ``monitor`` is not a string, or torch does not know an option.
        ValueError: an option is out of its range. Before the first step: the run has no such value, or nothing says
            which way is better.

    Example:
        >>> ReduceLROnPlateau("val/Acc@1", factor=0.2, patience=3)
    """

    def __init__(self, monitor: str = "loss", mode: str = "auto", **options: Any) -> None:
        self.monitor = Monitor(monitor, mode)
        self.options = options
        groups = len(options["min_lr"]) if isinstance(options.get("min_lr"), (list, tuple)) else 1
        # Refuses what torch does not know.
        self._make_scheduler(torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in range(groups)]))

    def on_begin(self, state: RunnerState) -> None:
        """Look the monitored value up. The count of a resumed run is restored after this."""
        self.monitor.begin(state)
        self.scheduler = self._make_scheduler(state.optimizer)

    def on_epoch_end(self, state: RunnerState) -> None:
        """Compare with the best value, and reduce the learning rate."""
        value = from_rank_zero(self.monitor.value(state))
        if value is not None:
            self.scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and the epochs since."""
        return {"monitor": self.monitor.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count. The learning rate itself is restored with the optimizer."""
        if self.monitor.load_state_dict(state_dict["monitor"]):
            self.scheduler.load_state_dict(state_dict["scheduler"])

    def _make_scheduler(self, optimizer: torch.optim.Optimizer) -> lr_scheduler.ReduceLROnPlateau:
        mode: Any = "min" if self.monitor.sign > 0 else "max"
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode, **self.options)
