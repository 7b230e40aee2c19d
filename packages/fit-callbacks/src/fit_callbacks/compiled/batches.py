"""Take the tensors out of a batch, and put others in their place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["flatten", "shown", "unflatten"]


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """Append the tensors of a nested value to a list, and return its form: shapes, dtypes, and everything else in it.

    Two values of the same form differ only in the numbers in their tensors. A form can be hashed.

    Raises:
        TypeError: it contains something else than dicts, lists, tuples, tensors, numbers, strings and None. The message
            is the class of that.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        form = value.shape, value.dtype, value.stride(), value.requires_grad
        return (*form, value.is_conj()) if value.dtype.is_complex else form
    if isinstance(value, Mapping):
        return type(value).__name__, tuple((key, flatten(part, tensors)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(flatten(part, tensors) for part in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value).__name__, value
    raise TypeError(type(value).__name__)


def unflatten(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a copy of a nested value with other tensors, in the order of `flatten`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        result: Any = copy.copy(value)  # of the same class, as that of the outputs of a Hugging Face model
        for key in value:
            result[key] = unflatten(value[key], tensors)
        return result
    if isinstance(value, (list, tuple)):
        parts = [unflatten(part, tensors) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def shown(form: Any) -> str:
    """Return the shapes in the form of a batch, such as `(32, 10), (32,)`."""
    if isinstance(form, tuple) and form and isinstance(form[0], torch.Size):
        return str(tuple(form[0]))
    parts = [shown(part) for part in form] if isinstance(form, tuple) else []
    return ", ".join(part for part in parts if part)
