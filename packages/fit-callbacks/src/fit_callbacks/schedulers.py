"""Inspect a scheduler and its optimizer for LRScheduler: its arguments and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

__all__ = ["EXPECTED", "arguments_of", "changes", "is_scheduler", "refuse_plateau", "restore", "settings_of"]

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
