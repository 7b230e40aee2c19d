"""Compare values bit for bit, and up to rounding."""

from __future__ import annotations

import io
from typing import Any

import torch

__all__ = ["as_tensor", "close", "flat", "from_file", "to_file"]


def to_file(state: Any) -> io.BytesIO:
    """Save a state into memory."""
    file = io.BytesIO()
    torch.save(state, file)
    return file


def from_file(file: io.BytesIO) -> Any:
    """Load a state as plain torch does."""
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(value: Any, path: str = "") -> list[Any]:
    """Return nested values as a list of plain ones, which can be compared bit for bit."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key], f"{path}/{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for number, part in enumerate(value) for leaf in flat(part, f"{path}/{number}")]
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [(path, value.dtype, value.shape, bytes(bits.tolist()))]
    return [(path, value.hex() if isinstance(value, float) else value)]


def close(value: Any, expected: Any) -> None:
    """Check that two values are equal up to the order in which numbers were summed. nan is equal to nan."""
    value, expected = (as_tensor(number).double() for number in (value, expected))
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def as_tensor(value: Any) -> torch.Tensor:
    """Return what `compute` of a metric returns as one tensor. It may be a dict, perhaps of dicts."""
    if isinstance(value, dict):
        return torch.cat([torch.empty(0), *(as_tensor(part).double().flatten() for part in value.values())])
    return torch.as_tensor(value)
