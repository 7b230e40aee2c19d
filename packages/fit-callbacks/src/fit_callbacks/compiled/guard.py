"""Notice when something changes that a graph has frozen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sized
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .code import is_looked_into
from .digest import digest
from .reach import Place, hooks_of, is_plain, is_same, reach, snapshot

__all__ = ["Guard"]

REQUIRES_GRAD = attrgetter("requires_grad")
ALWAYS = frozenset(vars(nn.Module()))
"""The attributes that every module has: its mode, and dicts of which only the entries are replaced."""


class Guard:
    """Compare what the Python code of a step depends on with how it was when graphs were recorded.

    Args:
        parts: modules, callbacks and others, by name.
        optimizer: the optimizer. The `lr` of its groups may change.
    """

    def __init__(self, parts: dict[str, Any], optimizer: Optimizer) -> None:
        self._parts, self._optimizer, groups = parts, optimizer, optimizer.param_groups
        self._places = places = list(reach(parts))
        self._snapshot = snapshot(places)
        self._settings = settings = [
            Place(f"{key} of the optimizer's group {number}", key, value, group)
            for number, group in enumerate(groups)
            for key, value in group.items()
            if key not in ("params", "lr", "initial_lr")
        ]
        kept = [place for place in places if place.entries is not None]
        self._values = [place for place in kept + settings if is_plain(place.value)]
        self._value_readers = _readers(self._values)
        self._read = [read(entries) for read, entries in self._value_readers]
        tensors = [place.value for place in places if isinstance(place.value, Tensor)]
        parameters = [parameter for group in groups for parameter in group["params"]]
        self._tensors: list[Tensor] = [t for t in parameters + tensors if t.layout is torch.strided]
        self._needs = list(map(REQUIRES_GRAD, self._tensors))
        objects = [place for place in kept if not is_plain(place.value) and place.key not in ALWAYS]
        self._object_readers = _readers(objects)
        hooks = [found for tensor in self._tensors for found in hooks_of(tensor) if found]
        self._sized = _sized([*parts.values(), *hooks, *(place.value for place in places)])
        self._where: list[int] | None = None
        self._held: list[Any] = []  # so that nothing new gets the place of a noted object

    def holds(self) -> bool:
        """Return whether no plain value has changed. Fast, for every batch."""
        try:
            now = [read(entries) for read, entries in self._value_readers]
        except LookupError:
            return False
        return now == self._read and list(map(REQUIRES_GRAD, self._tensors)) == self._needs

    def digest(self) -> str:
        """Return a text that is the same in other processes if the code of the step and what it reads are."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        trained = [Place("", "trained", parameter.requires_grad, None) for parameter in parameters]
        return digest(self._places, [*self._settings, *trained])

    def note_objects(self) -> None:
        """Note where weights, buffers, modules and the state of the optimizer are, when a graph is recorded."""
        self._where, self._held = self._find(), self._objects()

    def is_in_place(self) -> bool:
        """Return whether they are where they were, and nothing was added. After code that may have replaced one."""
        try:
            return self._where is None or self._find() == self._where
        except LookupError:
            return False

    def is_unchanged(self) -> bool:
        """Return whether everything else is the same, too. Slow, after code that may have replaced anything."""
        now = snapshot(reach(self._parts))
        return now.keys() == self._snapshot.keys() and all(is_same(self._snapshot[key], now[key]) for key in now)

    def changed(self) -> str:
        """Return the name of something that has changed."""
        for name, key, old, entries in self._values:
            try:
                new = entries[key]
            except LookupError:
                return f"{name} (removed)"
            if new != old:
                return f"{name} ({old} -> {new})"
        return "requires_grad of a parameter"

    def _find(self) -> list[int]:
        addresses = [tensor.data_ptr() for tensor in self._tensors]
        return [*addresses, *map(id, self._objects()), *map(len, self._sized)]

    def _objects(self) -> list[Any]:
        state: Any = self._optimizer.state
        found = [value for values in (state, *state.values()) for value in values.values()]
        for read, entries in self._object_readers:
            found += read(entries)
        for tensor in self._tensors:
            found += hooks_of(tensor)
        return found


def _readers(places: Iterable[Place]) -> list[tuple[itemgetter[Any], Any]]:
    """Return functions that read all values of a container in one call, as a tuple."""
    keys: dict[int, list[Any]] = {}
    for _, key, _, entries in places:
        keys.setdefault(id(entries), [entries, key]).append(key)  # the first key twice, since one alone makes no tuple
    return [(itemgetter(*found), entries) for entries, *found in keys.values()]


def _sized(values: Iterable[Any]) -> list[Sized]:
    """Return the containers in which something can be added."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (Mapping, list, set, deque)):
            found.append(value)
        elif isinstance(value, nn.Module) or (not isinstance(value, type) and is_looked_into(type(value))):
            found.append(getattr(value, "__dict__", ()))
    return list({id(container): container for container in found}.values())
