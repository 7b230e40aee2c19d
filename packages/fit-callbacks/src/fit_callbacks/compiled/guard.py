"""Notice when something changes that a graph has frozen."""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .reach import PLAIN, is_plain, is_same, reach, snapshot

__all__ = ["Guard"]

REQUIRES_GRAD = attrgetter("requires_grad")


class Guard:
    """Compare what the Python code of a step depends on with how it was when graphs were recorded.

    Args:
        parts: modules, callbacks and others, by name.
        optimizer: the optimizer. The `lr` of its groups may change.
    """

    def __init__(self, parts: dict[str, Any], optimizer: Optimizer) -> None:
        self._parts, self._optimizer, groups = parts, optimizer, optimizer.param_groups
        self._snapshot = snapshot(parts)
        places = list(reach(parts))
        self._values = [
            (place.name, place.entries, place.key, place.value)
            for place in places
            if place.entries is not None and is_plain(place.value)
        ]
        for number, group in enumerate(groups):
            self._values += [
                (f"{key} of the optimizer's group {number}", group, key, value)
                for key, value in group.items()
                if key not in ("params", "lr", "initial_lr") and is_plain(value)
            ]
        by_dict: dict[int, list[Any]] = {}
        for _, entries, key, _ in self._values:
            by_dict.setdefault(id(entries), [entries]).append(key)
        # All values of a dict are read in one call.
        self._readers = [(itemgetter(*keys), entries) for entries, *keys in by_dict.values()]
        self._read = [read(entries) for read, entries in self._readers]
        tensors = [place.value for place in places if isinstance(place.value, Tensor)]
        parameters = [parameter for group in groups for parameter in group["params"]]
        self._tensors: list[Tensor] = [t for t in parameters + tensors if t.layout is torch.strided]
        modules = [place.value for place in places if isinstance(place.value, nn.Module)]
        modules += [part for part in parts.values() if isinstance(part, nn.Module)]
        self._dicts = [vars(module)[name] for module in modules for name in ("_parameters", "_buffers")]
        self._needs = list(map(REQUIRES_GRAD, self._tensors))
        self._where: list[int] | None = None

    def holds(self) -> bool:
        """Return whether no plain value has changed. Fast, for every batch."""
        try:
            now = [read(entries) for read, entries in self._readers]
        except KeyError:
            return False
        return now == self._read and list(map(REQUIRES_GRAD, self._tensors)) == self._needs

    def note_tensors(self) -> None:
        """Note where weights, buffers and the state of the optimizer are, before a graph is recorded."""
        if self._where is None:
            self._where = self._find()

    def is_in_place(self) -> bool:
        """Return whether they are where they were. After code that may have replaced one."""
        return self._where is None or self._find() == self._where

    def is_unchanged(self) -> bool:
        """Return whether everything else is the same, too. Slow, after code that may have replaced anything."""
        now = snapshot(self._parts)
        return now.keys() == self._snapshot.keys() and all(is_same(self._snapshot[key], now[key]) for key in now)

    def changed(self) -> str:
        """Return the name of something that has changed."""
        for name, entries, key, old in self._values:
            new = entries.get(key, PLAIN)
            if new != old:
                return f"{name} ({old} -> {new})"
        return "requires_grad of a parameter"

    def _find(self) -> list[int]:
        state: Any = self._optimizer.state
        dicts = [*self._dicts, state, *state.values()]
        return [t.data_ptr() for t in self._tensors] + [id(value) for values in dicts for value in values.values()]
