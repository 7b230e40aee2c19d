"""Inspect a scheduler and its optimizer for LRScheduler: its arguments and its settings."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

__all__ = [
    "EXPECTED",
    "arguments_of",
    "changes",
    "check_function",
    "check_length",
    "is_scheduler",
    "refuse_plateau",
    "restore",
    "settings_of",
]

_SPANS = {
    lr_scheduler.StepLR: "step_size",
    lr_scheduler.CosineAnnealingLR: "T_max",
    lr_scheduler.CosineAnnealingWarmRestarts: "T_0",
}

EXPECTED = (
    "Write LRScheduler(StepLR(optimizer, 10), interval='epoch'), or "
    "LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 0.1, total_steps=steps + 1))"
)


def is_scheduler(value: Any) -> bool:
    """Return whether a value is a scheduler of torch, or has the methods of one, as those of timm."""
    methods = ("step", "state_dict", "load_state_dict", "optimizer")
    return not isinstance(value, type) and all(hasattr(value, name) for name in methods)


def refuse_plateau(scheduler: Any) -> None:
    """Refuse the scheduler that needs a value.

    Raises:
        ValueError: it is torch's ReduceLROnPlateau.
    """
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            "expected a scheduler that steps without a value, got torch's ReduceLROnPlateau. Use "
            "fit_callbacks.ReduceLROnPlateau(monitor)"
        )


def check_function(function: Any) -> None:
    """Check that a function that makes a scheduler takes the optimizer and the number of steps.

    Raises:
        TypeError: it takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C
        return
    try:
        signature.bind(None, 0)
    except TypeError:
        raise TypeError(f"expected a function of (optimizer, steps), got one of {signature}. {EXPECTED}") from None


def check_length(scheduler: Any, interval: str, epochs: int, steps: int) -> None:
    """Compare a scheduler with the length of the run, and warn if its numbers look like epochs while it counts steps.

    Args:
        scheduler: the scheduler, before the run.
        interval: `step` or `epoch`.
        epochs: the epochs of the run.
        steps: its optimizer steps.

    Raises:
        ValueError: it is a OneCycleLR that ends before the run.
    """
    kind, calls = type(scheduler).__name__, steps if interval == "step" else epochs
    if isinstance(scheduler, lr_scheduler.OneCycleLR) and scheduler.total_steps - scheduler.last_epoch < calls:
        raise ValueError(
            f"expected a schedule for {calls} {interval}s, got {kind} that ends after {scheduler.total_steps}. Pass a "
            "function: LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 0.1, total_steps=steps + 1))"
        )
    for inner in getattr(scheduler, "_schedulers", ()):
        check_length(inner, interval, epochs, steps)
    if interval == "epoch" or not 1 < epochs < steps:
        return
    name, span = _span(scheduler)
    if span is not None and span <= epochs:
        warnings.warn(
            f"{kind}({name}={span}) is stepped after each of the {steps} optimizer steps, and {span} looks like a "
            f"number of the {epochs} epochs. For epochs, write LRScheduler(scheduler, interval='epoch'). For the whole "
            "run, pass a function of (optimizer, steps)",
            stacklevel=3,
        )
    if isinstance(scheduler, lr_scheduler.ExponentialLR) and scheduler.gamma**steps < 1e-6:
        warnings.warn(
            f"{kind}(gamma={scheduler.gamma}) is stepped after each of the {steps} optimizer steps, which ends at "
            f"{scheduler.gamma**steps:.1g} of the learning rate. For epochs, write LRScheduler(scheduler, "
            "interval='epoch')",
            stacklevel=3,
        )


def _span(scheduler: Any) -> tuple[str, int | None]:
    """Return the number that says when the learning rate has fallen, and its name."""
    for kind, name in _SPANS.items():
        if isinstance(scheduler, kind):
            return name, getattr(scheduler, name)
    if isinstance(scheduler, lr_scheduler.MultiStepLR):
        return "milestones", max(scheduler.milestones, default=None)
    return "", None


def arguments_of(scheduler: Any) -> dict[str, Any]:
    """Return the public attributes of a scheduler that has not stepped yet, as far as they are plain values.

    Learning rates are left out: they are the optimizer's. Schedulers inside a scheduler are included.
    """
    found = {}
    for name, value in vars(scheduler).items():
        if name == "_schedulers":
            for number, inner in enumerate(value):
                found.update({f"{number}.{key}": part for key, part in arguments_of(inner).items()})
        elif name == "_milestones" or not (name.startswith("_") or name in ("base_lrs", "base_values", "last_epoch")):
            if isinstance(value, Mapping):  # the Counter of MultiStepLR
                value = sorted(value.items())
            if _is_plain(value):
                found[name.lstrip("_")] = list(value) if isinstance(value, (list, tuple)) else value
    return found


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the values that differ between two dicts: `T_max 5 -> 8`."""
    names = [name for name in then if name in now and then[name] != now[name]]
    return ", ".join(f"{name} {then[name]} -> {now[name]}" for name in names)


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings in an optimizer's parameter groups."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def restore(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    """Restore the settings of all parameter groups, and remove those that were added."""
    for group, saved in zip(optimizer.param_groups, settings, strict=True):
        for name in group.keys() - saved.keys() - {"params"}:
            del group[name]
        group.update(saved)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))
