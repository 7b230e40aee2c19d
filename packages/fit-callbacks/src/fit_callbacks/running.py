"""Read the losses and metrics of the loader that runs, before it is done."""

from __future__ import annotations

from collections.abc import Mapping

from fit_core import RunnerState, metric_name
from torch import Tensor

__all__ = ["running_metrics", "running_values"]


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


def running_values(state: RunnerState, since: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Return the mean of each loss since the last call, and the metrics so far. Reading them waits for the device.

    Args:
        state: in a training batch.
        since: total and weight of each loss at the last call. Updated by this one.
    """
    values: dict[str, float] = {}
    for name, meter in state.loss_meters.items():
        total, weight = since.get(name, (0.0, 0.0))
        now = since[name] = (float(meter.total), float(meter.weight))
        if now[1] > weight:
            values[name] = (now[0] - total) / (now[1] - weight)
    return values | running_metrics(state)
