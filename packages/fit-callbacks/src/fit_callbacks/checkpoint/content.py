"""Look into the content of a checkpoint: its tensors, and what torch would refuse to load."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["copy_to_cpu", "size_of", "why_not_loadable"]

_PLAIN = {dict, OrderedDict, list, tuple, torch.Size, Tensor, nn.Parameter, bool, int, float, str, type(None)}


def copy_to_cpu(value: Any) -> Any:
    """Return a copy of a nested state on the CPU, which later steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in _PLAIN and isinstance(value, Mapping):
        return {key: copy_to_cpu(part) for key, part in value.items()}
    if type(value) in _PLAIN and isinstance(value, (list, tuple)):
        return type(value)(copy_to_cpu(part) for part in value)
    return value


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in a nested state."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(size_of(part) for _, part in _parts(value))


def why_not_loadable(content: Any) -> str | None:
    """Return what a checkpoint contains that ``torch.load(..., weights_only=True)`` refuses, and where. Else None."""
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
