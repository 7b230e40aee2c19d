"""Check that several processes train one model, and log one value of each metric."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from .metric import Metric, metric_name
from .sharded import is_sharded, reshard

__all__ = ["gradients_are_averaged", "metrics_are_summed"]


def gradients_are_averaged(model: nn.Module, criterion: Any, world_size: int) -> None:
    """Check that several processes average the gradients of all parameters, if they average those of the model.

    Raises:
        ValueError: a criterion with trainable parameters is not wrapped or sharded as the model is, or a part of the
            model is not sharded.
    """
    if world_size == 1 or not (hasattr(model, "no_sync") or is_sharded(model)):
        return
    trains = isinstance(criterion, nn.Module) and any(parameter.requires_grad for parameter in criterion.parameters())
    if trains and not (hasattr(criterion, "no_sync") or is_sharded(criterion)):
        raise ValueError(
            f"expected a wrapped criterion on {world_size} processes, got a plain {type(criterion).__name__} with "
            "trainable parameters, which would drift apart. Wrap it: criterion = fit_distributed.parallel(criterion)"
        )
    reshard(model)
    whole = [name for name, p in model.named_parameters() if p.requires_grad and not hasattr(p, "full_tensor")]
    if whole and not hasattr(model, "no_sync"):
        raise ValueError(
            f"expected fully_shard on the whole model, got {len(whole)} parameters that are not sharded "
            f"({', '.join(whole[:3])}{', ...' if len(whole) > 3 else ''}), which would drift apart between the "
            "processes. Call fully_shard(model) after its layers"
        )


def metrics_are_summed(metrics: Iterable[Metric], world_size: int) -> None:
    """Warn of metrics that would log the values of one process only. Those of torchmetrics have `sync_context`."""
    names = [metric_name(m) for m in metrics if not hasattr(m, "all_reduce") and not hasattr(m, "sync_context")]
    if names and world_size > 1:
        warnings.warn(
            f"{', '.join(names)} cannot be summed over processes, so each process logs its own values. "
            "Add a method all_reduce() to the metric",
            stacklevel=5,
        )
