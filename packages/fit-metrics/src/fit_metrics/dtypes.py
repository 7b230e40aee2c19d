"""Use float64, or float32 on devices without float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_missing", "to_double"]


def is_missing(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether `device` does not have `dtype`: Apple's MPS does not have float64."""
    return device.type == "mps" and dtype == torch.float64


def to_double(value: Tensor) -> Tensor:
    """Return `value` in float64, or in float32 on devices without float64."""
    return value.to(torch.float32 if is_missing(torch.float64, value.device) else torch.float64)
