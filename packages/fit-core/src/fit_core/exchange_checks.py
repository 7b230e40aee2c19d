"""Check that several processes train one model, and log one value of each metric."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .metric import Metric, metric_name
from .processes import gather
from .sharded import is_sharded, reshard

__all__ = ["gradients_are_averaged", "metrics_are_summed", "states_are_alike"]


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


def states_are_alike(metrics: Iterable[Metric], has_outputs: Sequence[bool], loader_name: str) -> None:
    """Check that torchmetrics can exchange the states of its metrics, if some processes had no batch.

    Some states get their shape and dtype from the first batch. An exchange of others ends the process.

    Args:
        metrics: the metrics of this process.
        has_outputs: which processes had a batch, by rank.
        loader_name: the name of the loader.

    Raises:
        ValueError: a metric has states of another kind on another process.
    """
    found = [part for metric in metrics if isinstance(metric, nn.Module) for part in metric.modules()]
    parts: list[Any] = [part for part in found if hasattr(part, "sync_context") and hasattr(part, "metric_state")]
    if all(has_outputs) or not any(has_outputs) or not parts:
        return
    for part, *kinds in zip(parts, *gather("the states of metrics", [_kinds(part) for part in parts]), strict=True):
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                f"expected a batch of the {loader_name} loader on every process for {type(part).__name__} of "
                f"torchmetrics, got none on rank {has_outputs.index(False)}. It can exchange its states only after a "
                "batch. Evaluate more samples, on fewer processes, or use a metric of fit_metrics"
            )


def _kinds(metric: Any) -> list[tuple[torch.dtype, int]]:
    """Return dtype and dimensions of each state of a metric of torchmetrics, as it exchanges them."""
    empty = torch.empty(0, dtype=metric.dtype)
    parts = [[state] if isinstance(state, Tensor) else [empty, *state] for state in metric.metric_state.values()]
    return [(part[-1].dtype, max(tensor.dim() for tensor in part)) for part in parts]  # lists are joined
