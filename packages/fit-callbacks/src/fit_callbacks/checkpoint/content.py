"""Inspect the content of a checkpoint: its tensors, and values that torch would refuse to load."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["size_of", "to_cpu", "why_not_loadable"]

_PLAIN = {dict, OrderedDict, list, tuple, torch.Size, Tensor, nn.Parameter, bool, int, float, str, type(None)}


def to_cpu(value: Any, *, copy: bool = False, seen: dict[Any, Tensor] | None = None) -> Any:
    """Return a nested state with its tensors on the CPU, so that a machine without an accelerator can load it.

    Args:
        value: the state. It is left as it is.
        copy: copy the tensors that are on the CPU already, so that later steps do not change them.
        seen: the tensors so far. One that occurs twice, such as a tied weight, is copied once.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor) and value.is_meta:  # It stands for a sharded one.
        return value
    if isinstance(value, Tensor):
        key = (
            id(value) if value.layout != torch.strided else (value.data_ptr(), value.shape, value.stride(), value.dtype)
        )
        if key not in seen or not value.numel():
            seen[key] = value.detach().to("cpu", copy=copy)
        return seen[key]
    if type(value) in _PLAIN and isinstance(value, Mapping):
        return {key: to_cpu(part, copy=copy, seen=seen) for key, part in value.items()}
    if type(value) in _PLAIN and isinstance(value, (list, tuple)):
        return type(value)(to_cpu(part, copy=copy, seen=seen) for part in value)
    return value


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in a nested state."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(size_of(part) for _, part in _parts(value))


def why_not_loadable(content: Any) -> str | None:
    """Return which value of a checkpoint `torch.load(..., weights_only=True)` refuses, and its place, or None."""
    found = _first_foreign(content, ())
    if found is None:
        return None
    place, value = found
    where = ".".join(map(str, place))
    if place[:1] == ("callbacks",):
        advice = f"Leave it out of {place[1]}.state_dict(), or convert it there"
    else:
        advice = "Put plain values there"
    return (
        "expected tensors, numbers, strings, and lists, tuples and dicts of them in a checkpoint, got a "
        f"{type(value).__name__} at {where}: {value!r:.80}. {advice}"
    )


def _first_foreign(value: Any, place: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any] | None:
    for key, part in _parts(value):
        if found := _first_foreign(part, (*place, key)):
            return found
        if isinstance(value, Mapping) and (found := _first_foreign(key, (*place, key))):
            return found
    return None if type(value) in _PLAIN or _loads(value) else (place, value)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _loads(value: Any) -> bool:
    """Return whether torch saves a value and loads it again."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # There are as many as there are types.
        return False
    return True
