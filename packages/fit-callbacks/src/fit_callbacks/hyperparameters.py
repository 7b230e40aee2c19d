"""Describe a run by the hyperparameters that its Runner knows, for experiment trackers."""

from __future__ import annotations

from typing import Any

from fit_core import RunnerState, samplers, unwrap

__all__ = ["hyperparameters"]


def hyperparameters(state: RunnerState) -> dict[str, Any]:
    """Return them by name, without those that are unknown, such as the batch size of a list of batches."""
    group = state.optimizer.param_groups[0]
    found = {
        "model": type(unwrap(state.model)).__name__,
        "optimizer": type(state.optimizer).__name__,
        "lr": float(group.get("initial_lr", group["lr"])),
        "batch_size": _batch_size(state.train_loader),
        "accumulate_steps": state.accumulate_steps,
        "processes": state.world_size,
        "epochs": state.num_epochs,
    }
    return {name: value for name, value in found.items() if value is not None}


def _batch_size(loader: Any) -> int | None:
    """Return the batch size of a loader or of its BatchSampler."""
    holders = (loader, *samplers(loader))
    return next((size for holder in holders if (size := getattr(holder, "batch_size", None)) is not None), None)
