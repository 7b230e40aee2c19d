"""Find the attributes and tensors that the Python code of a step may read and change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Place", "is_plain", "is_same", "reach", "snapshot"]

PLAIN = (bool, int, float, str, type(None))
OTHERS = ("fit_core", "fit_callbacks", "fit_metrics", "fit_distributed", "torch", "numpy")
"""Packages whose objects are not looked into, except for modules."""
INSIDE = ("_modules", "_parameters", "_buffers")
"""The attributes of a module that do not appear in names."""
LARGE = 1000
"""Containers with more entries are data, and not looked into."""


class Place(NamedTuple):
    """Where a value is.

    Attributes:
        name: for messages, such as `model.0.training`.
        key: its key.
        value: the value.
        entries: the dict that contains it, None if it is in something else.
    """

    name: str
    key: Any
    value: Any
    entries: dict[Any, Any] | None


def reach(parts: Mapping[str, Any]) -> Iterator[Place]:
    """Yield all places that can be reached from some objects: attributes, entries of dicts and lists, closures.

    Args:
        parts: the objects by name. They are looked into, whatever they are.
    """
    seen: set[int] = set()
    waiting = [(name, part, True) for name, part in parts.items()]
    for name, owner, is_part in waiting:
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        entries, is_live = _entries(owner, is_part)
        for key, value in entries.items():
            is_inside = isinstance(owner, nn.Module) and key in INSIDE
            label = key if isinstance(key, (str, int)) else f"<{type(key).__name__}>"  # printing a tensor is slow
            path = name if is_inside else f"{name}.{label}"
            yield Place(path, key, value, entries if is_live else None)
            if isinstance(value, nn.Parameter):
                hooks = (value._backward_hooks, getattr(value, "_post_accumulate_grad_hooks", None))
                waiting += [(f"{path} hooks", found, False) for found in hooks if found]
            elif not is_plain(value) and not isinstance(value, (Tensor, type)):
                waiting.append((path, value, False))


def snapshot(parts: Mapping[str, Any]) -> dict[tuple[str, Any], Any]:
    """Return the values of all places. That of a tensor is where its numbers are."""
    return {(place.name, place.key): _value(place.value) for place in reach(parts)}


def is_same(old: Any, new: Any) -> bool:
    """Return whether a value of a snapshot is still the same."""
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return all(map(is_same, old, new))
    return old is new or (is_plain(old) and type(old) is type(new) and bool(old == new))


def is_plain(value: Any) -> bool:
    """Return whether a value can be compared, and is not changed in place."""
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value))


def _entries(value: Any, is_part: bool) -> tuple[dict[Any, Any], bool]:
    """Return what is in a value by key, and whether it is the dict in which it is kept."""
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return {name: _content(cell) for name, cell in cells}, False
    if isinstance(value, MethodType):
        return {"__self__": value.__self__}, False
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, **value.keywords}, False
    if isinstance(value, (Mapping, list, tuple, set, deque)):
        if len(value) > LARGE:
            return {}, False
        if isinstance(value, dict):
            return value, True
        return dict(value.items() if isinstance(value, Mapping) else enumerate(value)), False
    if is_part or isinstance(value, nn.Module) or type(value).__module__.split(".")[0] not in OTHERS:
        return getattr(value, "__dict__", {}), True
    return {}, False


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _value(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return bytes(value.get_state()).hex()
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return value, value.data_ptr()
    return value
