"""Find a loss or a metric that broadcasts outputs (N, 1) against targets (N,), and so compares each with all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["refuse_broadcast", "same_shape"]


def refuse_broadcast(name: str, function: Callable[[Any, Any], Any], output: Any, target: Any, value: Any) -> None:
    """Check that a function of output and target does not broadcast them, if one has a dimension of 1 more.

    The function may drop the dimension itself. So a copy of it is called again, with both in the shape to which they
    would be broadcast and with both without the dimension. Only then is a value read from the device.

    Args:
        name: the name of the function in the message.
        function: the criterion, or a metric.
        output: the output of the batch.
        target: its target.
        value: what the function returned for them.

    Raises:
        ValueError: it broadcasts them.
    """
    fix = same_shape(output, target)
    if fix is None:
        return
    flat = min(output.shape, target.shape, key=len)
    try:
        wide = torch.broadcast_shapes(output.shape, target.shape)  # type: ignore[no-untyped-call]  # of torch
        if wide.numel() == flat.numel():
            return
        with torch.no_grad(), torch.random.fork_rng([]):
            trial = copy.deepcopy(function)  # It may count batches.
            is_broadcast = _broadcasts(trial, output, target, wide, flat, value)
            if not is_broadcast:  # A new model may predict one number for all, so try perfect outputs.
                perfect = target.reshape(output.shape).to(output.dtype)
                is_broadcast = _broadcasts(trial, perfect, target, wide, flat, trial(perfect, target))
    except Exception:  # of the user's code, which may expect the dimension, or of shapes that do not broadcast
        return
    if is_broadcast:
        raise ValueError(
            f"expected output and target of the same shape, got {tuple(output.shape)} and {tuple(target.shape)}, which "
            f"{name} broadcasts: it compares each output with the targets of all samples. Return targets of the "
            f"output's shape from the dataset: {fix}"
        )


def same_shape(output: Any, target: Any) -> str | None:
    """Return what gives a target the output's shape, if one has a dimension of 1 more. Otherwise return None."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or abs(output.dim() - target.dim()) != 1:
        return None
    longer, other = (output, target) if output.dim() > target.dim() else (target, output)
    for dim, size in enumerate(longer.shape[1:], 1):
        if size == 1 and longer.squeeze(dim).shape == other.shape:
            return f"target.{'unsqueeze' if longer is output else 'squeeze'}({dim})"
    return None


def _broadcasts(
    function: Callable[[Any, Any], Any], output: Tensor, target: Tensor, wide: torch.Size, flat: torch.Size, value: Any
) -> bool:
    """Return whether a value is that of all outputs with all targets, and not that of each with its own."""
    is_wide = _is_close(function(output.expand(wide), target.expand(wide)), value)
    return is_wide and not _is_close(function(output.reshape(flat), target.reshape(flat)), value)


def _is_close(value: Any, other: Any) -> bool:
    return torch.allclose(torch.as_tensor(value).double().cpu(), torch.as_tensor(other).double().cpu(), rtol=1e-3)
