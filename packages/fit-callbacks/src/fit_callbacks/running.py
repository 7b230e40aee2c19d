"""Read the losses and metrics of the loader that runs, before it is done."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

from fit_core import RunnerState, metric_name, named_values

__all__ = ["running_losses", "running_metrics", "running_values"]


def running_losses(state: RunnerState) -> dict[str, float]:
    """Return the mean losses so far, on this process alone. Reading them waits for the device."""
    return {name: float(meter.compute()) for name, meter in state.loss_meters.items()}


def running_metrics(state: RunnerState) -> dict[str, float]:
    """Return the values of the metrics so far, on this process alone. Reading them waits for the device."""
    metrics = [metric for metric in state.metrics if state.world_size == 1 or not _synchronises(metric)]
    found = {metric_name(metric): named_values(metric) for metric in metrics}
    counts = Counter(chain(state.loss_meters, *found.values()))
    return {  # a name that two have comes behind that of its metric, as in the results of the loader
        key if counts[key] == 1 or key == metric else f"{metric}/{key}": value
        for metric, numbers in found.items()
        for key, value in numbers.items()
    }


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


def _synchronises(metric: Any) -> bool:
    """Return whether compute() exchanges values with all processes, of which only this one would call it."""
    parts = metric.modules() if hasattr(metric, "modules") else [metric]  # a MetricCollection of torchmetrics
    return any(hasattr(part, "sync_context") for part in parts)
