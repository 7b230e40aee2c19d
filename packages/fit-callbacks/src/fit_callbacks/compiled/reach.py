"""Find the attributes and tensors that the Python code of a step may read and change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .code import Enclosed, class_attributes, global_variables, is_looked_into, is_users

__all__ = ["PLAIN", "Place", "hooks_of", "is_plain", "is_same", "reach", "snapshot"]

PLAIN = (bool, int, float, str, type(None))
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
        entries: what contains it, so that `entries[key]` is its value at any time. None if that cannot change.
    """

    name: str
    key: Any
    value: Any
    entries: Any


def reach(parts: Mapping[str, Any]) -> Iterator[Place]:
    """Yield all places that can be reached from some objects.

    These are attributes, entries of dicts and lists, and the variables that functions and methods of the user read.

    Args:
        parts: the objects by name. They are looked into, whatever they are.
    """
    seen: set[int] = set()
    waiting = [(name, part, True) for name, part in parts.items()]
    for name, owner, is_part in waiting:
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for contents, entries in _contents(owner, is_part):
            for key, value in contents:
                label = key if isinstance(key, (str, int)) else f"<{type(key).__name__}>"  # printing a tensor is slow
                path = name if label in INSIDE else f"{name}.{label}"
                yield Place(path, key, value, entries)
                if isinstance(value, nn.Parameter):
                    waiting += [(f"{path} hooks", found, False) for found in hooks_of(value) if found]
                elif not is_plain(value) and not isinstance(value, (Tensor, ModuleType)):
                    waiting.append((path, value, False))


def hooks_of(parameter: Tensor) -> tuple[Any, Any]:
    """Return the dicts of hooks of a parameter, None for those that it does not have."""
    return parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)


def snapshot(places: Iterable[Place]) -> dict[tuple[str, Any], Any]:
    """Return the values of places. That of a tensor is where its numbers are."""
    return {(place.name, place.key): _value(place.value) for place in places}


def is_same(old: Any, new: Any) -> bool:
    """Return whether a value of a snapshot is still the same."""
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return all(map(is_same, old, new))
    return old is new or (is_plain(old) and type(old) is type(new) and bool(old == new))


def is_plain(value: Any) -> bool:
    """Return whether a value can be compared, and is not changed in place."""
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value))


def _contents(value: Any, is_part: bool) -> Iterator[tuple[Iterable[tuple[Any, Any]], Any]]:
    """Yield what is in a value by key, and what keeps it, None if it cannot change."""
    if isinstance(value, FunctionType):
        enclosed = Enclosed(value)
        yield list(enclosed.items()), enclosed
        yield list(global_variables(value).items()), value.__globals__
        yield [("defaults", value.__defaults__), ("defaults", value.__kwdefaults__)], None
    elif isinstance(value, MethodType):
        yield [("__self__", value.__self__), ("__func__", value.__func__)], None
    elif isinstance(value, partial):
        yield [("func", value.func), ("args", value.args), ("keywords", value.keywords)], None
    elif isinstance(value, property):
        yield [("fget", value.fget)], None
    elif isinstance(value, (Mapping, list, tuple, set, deque)):
        if len(value) <= LARGE:
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            yield list(items), None if isinstance(value, (tuple, set)) else value
    elif isinstance(value, type):
        if is_users(value.__module__):
            yield list(class_attributes(value).items()), vars(value)
            yield [(base.__name__, base) for base in value.__bases__], None
    elif is_part or isinstance(value, nn.Module) or is_looked_into(type(value)):
        attributes = getattr(value, "__dict__", {})
        yield list(attributes.items()), attributes
        yield [(type(value).__name__, type(value))], None


def _value(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return bytes(value.get_state()).hex()
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return value, value.data_ptr()
    return value
