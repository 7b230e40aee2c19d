"""Check the output and the target of a batch, and bring numbers to one shape and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_tensors", "number_inputs", "without_column"]

WIDE = {torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64}


def check_tensors(metric: str, output: Any, target: Any) -> None:
    """Check that output and target are tensors of real numbers.

    Raises:
        TypeError: one is not.
    """
    for name, value in (("output", output), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{metric} expected the {name} to be a tensor, got {type(value).__name__}. Pick the tensor in a "
                "subclass: def update(self, output, target): super().update(output['logits'], target)"
            )
        if value.is_complex():
            raise TypeError(f"{metric} expected the {name} to be real, got {value.dtype}. Pass {name}.abs() or .real")


def number_inputs(metric: str, output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return output and target without their graph, in one shape and in a floating dtype that can represent both.

    Args:
        metric: its name, for messages.
        output: any shape, any real dtype.
        target: the same shape. `(N, 1)` and `(N,)` are the same.

    Raises:
        TypeError: one is not a tensor, or is complex.
        ValueError: the shapes differ. They are not broadcast, because `(N, 1)` minus `(N,)` would be `(N, N)`.
    """
    check_tensors(metric, output, target)
    if {output.dim(), target.dim()} == {1, 2}:
        flat_output, flat_target = without_column(output), without_column(target)
    else:
        flat_output, flat_target = output, target
    if flat_output.shape != flat_target.shape:
        raise ValueError(
            f"{metric} expected output and target of the same shape, got output {tuple(output.shape)} and target "
            f"{tuple(target.shape)}. Return one output for each target from the model"
        )
    is_wide = output.dtype in WIDE or target.dtype in WIDE
    dtype = torch.float64 if is_wide and output.device.type != "mps" else torch.float32
    return flat_output.detach().to(dtype), flat_target.detach().to(dtype)


def without_column(value: Tensor) -> Tensor:
    """Return `(N, 1)` as `(N,)`, and any other tensor as it is."""
    return value.squeeze(1) if value.dim() == 2 and value.size(1) == 1 else value
