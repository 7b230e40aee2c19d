"""Step a scheduler of torch or timm with the run, or reduce the learning rate on a plateau."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from fit_core import Callback, RunnerState
from torch.optim import lr_scheduler

from .arguments import check_number, check_whole
from .monitor import Monitor
from .ranks import from_rank_zero
from .schedulers import (
    EXPECTED,
    arguments_of,
    changes,
    check_function,
    check_length,
    is_scheduler,
    refuse_plateau,
    restore,
    settings_of,
)

__all__ = ["LRScheduler", "ReduceLROnPlateau"]


class LRScheduler(Callback):
    """Step any scheduler of torch, or of timm, after each optimizer step or after each epoch.

    It is not stepped when the gradient scaler (fp16) skipped the optimizer's step. A resumed run continues the
    schedule. If the run is longer or shorter than before, a scheduler that a function makes is made for the new number
    of steps and continues at the step where the run is. A warning says so. In another `fit`, a function makes a new
    schedule from the learning rate that the last one has left. If that is 0, a warning says what to do.

    Args:
        scheduler: a scheduler over the run's optimizer (or over one of `Optimizers`), or a function
            `f(optimizer, total_steps)` that makes one when the run starts, for schedules that depend on the number of
            optimizer steps of the run.
        interval: step it after each `step` or each `epoch`. A warning says so if its numbers look like epochs and it is
            stepped after each step. timm's schedulers are called after both, as they expect.

    Raises:
        TypeError: `scheduler` is neither, or the function takes other arguments or returned something else.
        ValueError: the interval is neither. The scheduler belongs to another optimizer. `total_steps` is needed and
            the loader does not have a len. A `OneCycleLR` ends before the run. A resumed run has other parameter
            groups, or a scheduler that was made with other arguments. The message says what to do.

    Examples:
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
            raise ValueError(f"expected interval to be 'step' or 'epoch', got {interval!r}")
        is_made = is_scheduler(scheduler)
        if isinstance(scheduler, type) or not (is_made or callable(scheduler)):
            got = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else f"{scheduler!r:.80}"
            raise TypeError(f"expected a scheduler or a function that makes one, got {got}. {EXPECTED}")
        if not is_made:
            check_function(scheduler)
        self.scheduler: Any = scheduler if is_made else None
        self._make: Any = None if is_made else scheduler
        self.interval = interval
        self._scale = 1.0
        self._steps = self._total = self._groups = 0
        self._length: dict[str, int] = {}  # of the run for which the scheduler was made
        self._before: list[dict[str, Any]] = []  # the optimizer's settings before it was made
        self._arguments: dict[str, Any] = {}
        if is_made:
            refuse_plateau(scheduler)
            self._arguments = arguments_of(self.scheduler)

    def on_begin(self, state: RunnerState) -> None:
        """Make the scheduler if a function was passed."""
        self._state, self._steps, self._groups = state, 0, len(state.optimizer.param_groups)
        if self._make is not None:
            self._total = state.total_steps
            self._length = {"steps": state.total_steps, "epochs": state.num_epochs}
            self._before = copy.deepcopy(settings_of(state.optimizer))
            self.scheduler = self._made()
            if not any(group["lr"] for group in (*self._before, *state.optimizer.param_groups)):
                warnings.warn(
                    f"the learning rate is 0, and {type(self.scheduler).__name__} only scales it, so the run does not "
                    'train. If an earlier fit has left it there, set param_groups[0]["lr"] of the optimizer before fit',
                    stacklevel=2,
                )
            self._arguments = arguments_of(self.scheduler)
        if state.batches_per_epoch is not None and not hasattr(self.scheduler, "step_update"):
            check_length(self.scheduler, self.interval, state.num_epochs, state.total_steps)
        own = (state.optimizer, *getattr(state.optimizer, "optimizers", ()))
        if not any(self.scheduler.optimizer is optimizer for optimizer in own):
            raise ValueError(
                "the scheduler was made for another optimizer than the Runner's. Create it with the optimizer that you "
                "pass to the Runner"
            )

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Record the scale of the gradients. A skipped step lowers it."""
        self._scale = state.grad_scaler.get_scale()

    def on_batch_end(self, state: RunnerState) -> None:
        """Step the scheduler after the optimizer."""
        if not (state.is_train and state.is_optimizer_step):
            return
        if hasattr(self.scheduler, "step_update"):  # timm
            self.scheduler.step_update(state.global_step)
        elif self.interval == "step" and not self._was_skipped(state):
            self._step()

    def on_epoch_end(self, state: RunnerState) -> None:
        """Step the scheduler after the epoch."""
        if hasattr(self.scheduler, "step_update"):
            self.scheduler.step(state.epoch + 1)
        elif self.interval == "epoch":
            self._step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, its arguments, and its settings of the optimizer."""
        return {
            "scheduler": self.scheduler.state_dict(),
            "settings": settings_of(self.scheduler.optimizer),
            "steps": self._steps,
            "total": self._total,
            "length": self._length,
            "before": self._before,
            "arguments": self._arguments,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the schedule, and restore the optimizer's settings, which a new scheduler has changed."""
        optimizer, saved = self.scheduler.optimizer, state_dict["settings"]
        kind, arguments = type(self.scheduler).__name__, state_dict.get("arguments", {})
        if len(optimizer.param_groups) != len(saved):
            raise ValueError(
                f"the {kind} was saved for {len(saved)} parameter groups, and its optimizer has "
                f"{len(optimizer.param_groups)}. Make the groups that the run had before"
            )
        changed = changes(arguments, self._arguments)
        if changed and self._make is None:
            raise ValueError(
                f"the {kind} was made with other arguments than the checkpoint's: {changed}. Make it as before, or "
                "pass a function, which may depend on the length of the run: LRScheduler(lambda optimizer, steps: ...)"
            )
        self._steps, self._before = state_dict.get("steps", 0), state_dict.get("before", self._before)
        length, self._total = state_dict.get("length", self._length), state_dict.get("total", self._total)
        if (changed or length != self._length) and self._state.epoch < self._state.num_epochs:
            self._make_for_new_length(length, changed)
            return
        if self._make is not None and self._total != self._length["steps"]:  # A resume has changed its length before.
            self.scheduler = self._made()
        self.scheduler.load_state_dict(state_dict["scheduler"])
        restore(optimizer, saved)

    def _make_for_new_length(self, length: dict[str, int], changed: str) -> None:
        """Make the scheduler again, and repeat the steps of the run."""
        state, epochs = self._state, self._state.num_epochs
        old, self._total = self._total, self._length["steps"]
        if length["steps"] * epochs != self._length["steps"] * length["epochs"]:  # another number of steps per epoch
            steps = self._length["steps"] // epochs
            done = min(steps, state.batch_idx // state.accumulate_steps)
            self._total = state.global_step + (epochs - state.epoch) * steps - done
        restore(self.scheduler.optimizer, self._before)
        self.scheduler = self._made()
        if hasattr(self.scheduler, "step_update"):
            self.scheduler.step(state.epoch)
            self.scheduler.step_update(state.global_step)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that the optimizer has not stepped
                for _ in range(self._steps):
                    self.scheduler.step()
        warnings.warn(
            f"the {type(self.scheduler).__name__} was made for {old} steps and is resumed for {self._total}"
            f"{f' ({changed})' if changed else ''}: it continues at step {state.global_step} of the new schedule",
            stacklevel=2,
        )

    def _made(self) -> Any:
        scheduler = self._make(self._state.optimizer, self._total)
        if not is_scheduler(scheduler):
            raise TypeError(f"expected a scheduler from the function, got {scheduler!r:.80}. {EXPECTED}")
        refuse_plateau(scheduler)
        return scheduler

    def _step(self) -> None:
        groups = len(self._state.optimizer.param_groups)
        try:
            if groups != self._groups and _leaves_out(self.scheduler, groups):
                raise ValueError("expected a learning rate for each group")  # torch 2.6 takes fewer
            self.scheduler.step()
        except (ValueError, KeyError, IndexError) as error:
            if groups != self._groups:
                raise ValueError(
                    f"the {type(self.scheduler).__name__} was made for {self._groups} parameter groups, and the "
                    f"optimizer has {groups} now. Make all groups before fit"
                ) from error
            raise
        self._steps += 1

    def _was_skipped(self, state: RunnerState) -> bool:
        if not state.grad_scaler.is_enabled():
            return False
        before, self._scale = self._scale, state.grad_scaler.get_scale()  # waits for the device, as the scaler has
        return self._scale < before


class ReduceLROnPlateau(Callback):
    """Reduce the learning rate when the monitored value no longer improves, with torch's ReduceLROnPlateau.

    Every process follows rank 0. Epochs without validation (`validate_every`) do not count. nan is never an
    improvement.

    Args:
        monitor: a key of the logs, such as `val/Acc@1`. `loss` is `val/loss`, or `train/loss` without
            validation.
        mode: `min` if lower is better, `max` if higher is. `auto` takes `min` for a loss, and asks a metric's
            `higher_is_better`.
        **options: options of `torch.optim.lr_scheduler.ReduceLROnPlateau`: `factor` (0.1) multiplies the learning
            rate after more than `patience` (10) epochs without an improvement, `threshold` (1e-4) and
            `threshold_mode` (`rel`) that define an improvement, `cooldown` (0), `min_lr` (0).

    Raises:
        TypeError: `monitor` is not a string, or an option does not exist.
        ValueError: an option is out of range. Before the first step: the run does not have this value, or it is unknown
            which way is better.

    Examples:
        >>> ReduceLROnPlateau("val/Acc@1", factor=0.2, patience=3)
    """

    def __init__(self, monitor: str = "loss", mode: str = "auto", **options: Any) -> None:
        self.monitor = Monitor(monitor, mode)
        self.options = options
        for name, interval in {"factor": "(0, 1)", "threshold": "[0, inf)", "eps": "[0, inf)"}.items():
            check_number(name, options.get(name, 0.1), interval)
        for name in ("patience", "cooldown"):
            check_whole(name, options.get(name, 0), 0)
        rates = options.get("min_lr", 0)
        for rate in rates if isinstance(rates, (list, tuple)) else [rates]:
            check_number("min_lr", rate, "[0, inf)")
        groups = len(options["min_lr"]) if isinstance(options.get("min_lr"), (list, tuple)) else 1
        # Raises for unknown options.
        self._make_scheduler(torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in range(groups)]))

    def on_begin(self, state: RunnerState) -> None:
        """Find the monitored value. The count of a resumed run is restored after this."""
        self.monitor.begin(state)
        least, groups = self.options.get("min_lr"), len(state.optimizer.param_groups)
        if isinstance(least, (list, tuple)) and len(least) != groups:
            raise ValueError(
                f"expected one min_lr for each of the optimizer's {groups} parameter groups, got {len(least)}. Pass as "
                "many, or one number for all"
            )
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


def _leaves_out(scheduler: Any, groups: int) -> bool:
    """Return whether a scheduler computes fewer learning rates than there are groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It wants to be asked in its own step only.
        try:
            return len(scheduler.get_lr()) < groups
        except (AttributeError, NotImplementedError):  # It is not torch's, or asks other schedulers.
            return False
