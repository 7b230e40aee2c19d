"""Read the losses and metrics of the loader that runs, before it is done."""

from __future__ import annotations

from collections.abc import Mapping

from fit_core import RunnerState, metric_name
from torch import Tensor

__all__ = ["running_metrics"]


def running_metrics(state: RunnerState) -> dict[str, float]:
    """Return the values of the metrics so far, on this process alone. Reading them waits for the device."""
    values: dict[str, float] = {}
    for metric in state.metrics:
        if state.world_size > 1 and hasattr(metric, "sync_context"):
            continue  # The compute() of torchmetrics exchanges values with all processes, of which only this one asks.
        value = metric.compute()
        named = value if isinstance(value, Mapping) else {metric_name(metric): value}
        for name, entry in named.items():
            if not isinstance(entry, Tensor) or entry.numel() == 1:
                values[name] = float(entry)
    return values
