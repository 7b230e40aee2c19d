"""Notice when something changes that a graph has frozen."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from fit_core import RunnerState
from torch import Tensor, nn
from torch.optim import Optimizer

from .random_watch import RandomWatch
from .reach import PLAIN, is_plain, is_same, reach, snapshot

__all__ = ["Guard", "Watch"]

COUNTERS = ("epoch", "batch_idx", "global_step", "samples_seen", "logs", "history", "loss_meters")
"""The fields of the state that change from batch to batch, so that a step that reads one cannot be replayed."""


class Guard:
    """Compare what the Python code of a step depends on with how it was when graphs were recorded.

    Args:
        parts: modules, callbacks and others, by name.
        optimizer: the optimizer. The ``lr`` of its groups may change.
    """

    def __init__(self, parts: dict[str, Any], optimizer: Optimizer) -> None:
        self._parts, self._optimizer, groups = parts, optimizer, optimizer.param_groups
        self._snapshot = snapshot(parts)
        places = list(reach(parts))
        self._places = [
            (place.name, place.entries, place.key)
            for place in places
            if place.entries is not None and is_plain(place.value)
        ]
        for number, group in enumerate(groups):
            self._places += [
                (f"{key} of the optimizer's group {number}", group, key)
                for key, value in group.items()
                if key not in ("params", "lr", "initial_lr") and is_plain(value)
            ]
        self._pairs = [(entries, key) for _, entries, key in self._places]
        self._values = self._read()
        tensors = [place.value for place in places if isinstance(place.value, Tensor)]
        parameters = [parameter for group in groups for parameter in group["params"]]
        self._tensors: list[Tensor] = [t for t in parameters + tensors if t.layout is torch.strided]
        modules = [place.value for place in places if isinstance(place.value, nn.Module)]
        modules += [part for part in parts.values() if isinstance(part, nn.Module)]
        self._dicts = [vars(module)[name] for module in modules for name in ("_parameters", "_buffers")]
        self._needs = [tensor.requires_grad for tensor in self._tensors]
        self._where: list[int] | None = None

    def holds(self) -> bool:
        """Return whether no plain value has changed. Fast, for every batch."""
        return self._read() == self._values and [t.requires_grad for t in self._tensors] == self._needs

    def note_tensors(self) -> None:
        """Note where weights, buffers and the state of the optimizer are, before a graph is recorded."""
        if self._where is None:
            self._where = self._find()

    def is_in_place(self) -> bool:
        """Return whether they are where they were. After code that may have replaced one."""
        return self._where is None or self._find() == self._where

    def is_unchanged(self) -> bool:
        """Return whether everything else is the same, too. For every epoch."""
        now = snapshot(self._parts)
        same = now.keys() == self._snapshot.keys() and all(is_same(self._snapshot[key], now[key]) for key in now)
        return same and self.is_in_place()

    def changed(self) -> str:
        """Return the name of something that has changed."""
        for (name, _, _), old, new in zip(self._places, self._values, self._read(), strict=True):
            if old != new:
                return f"{name} ({old} -> {new})"
        return "requires_grad of a parameter"

    def _read(self) -> list[Any]:
        return [entries.get(key, PLAIN) for entries, key in self._pairs]

    def _find(self) -> list[int]:
        state: Any = self._optimizer.state
        dicts = [*self._dicts, state, *state.values()]
        return [t.data_ptr() for t in self._tensors] + [id(value) for values in dicts for value in values.values()]


class Watch:
    """Run a step eagerly, and find what a graph would freeze in it.

    Args:
        state: the state of the run.
        parts: modules, callbacks and others by name, whose attributes a step should not change.
        batch: the tensors of the batch, whose numbers a step should not change.

    Attributes:
        reason: why the step cannot be a graph, None if nothing was found.
    """

    def __init__(self, state: RunnerState, parts: dict[str, Any], batch: list[Tensor]) -> None:
        self.reason: str | None = None
        self._state = state
        self._parts = parts
        self._batch = [tensor for tensor in batch if not tensor.is_inference()]

    def __enter__(self) -> Watch:
        self._snapshot = snapshot(self._parts)
        self._versions = [tensor._version for tensor in self._batch]
        self._random = RandomWatch()
        self._random.__enter__()
        self._read: list[str] = []
        self._class = type(self._state)
        self._state.__class__ = _watched(self._class, self._read)
        self._warnings = warnings.catch_warnings(record=True)
        self._on_cuda = self._state.device.type == "cuda"
        if self._on_cuda:
            self._caught = self._warnings.__enter__()
            warnings.simplefilter("always")
            self._mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *_: Any) -> None:
        self._random.__exit__()
        self._state.__class__ = self._class
        waits: list[str] = []
        if self._on_cuda:
            torch.cuda.set_sync_debug_mode(self._mode)
            self._warnings.__exit__(None, None, None)
            for warning in self._caught or ():
                if "synchronizing CUDA operation" in str(warning.message):
                    waits.append(f"{warning.filename}:{warning.lineno}")
                elif "Synchronization debug mode" not in str(warning.message):
                    warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        before, after = self._snapshot, snapshot(self._parts)
        changed = [key for key in after if not is_same(before.get(key, PLAIN), after[key])] or before.keys() - after
        if waits:
            self.reason = f"the step waits for the device ({waits[0]})"
        elif self._read:
            self.reason = f"the step reads state.{self._read[0]}, which a graph would freeze"
        elif changed:
            self.reason = f"the step changes {next(iter(changed))[0]}, which a graph would not"
        elif self._versions != [tensor._version for tensor in self._batch]:
            self.reason = "the step changes the tensors of its batch in place"
        else:
            self.reason = self._random.reason


def _watched(state: type, read: list[str]) -> type:
    """Return a subclass of the state's class that notes which counters code outside fit_core reads."""

    def getattribute(self: Any, name: str) -> Any:
        if name in COUNTERS and not sys._getframe(1).f_globals.get("__name__", "").startswith("fit_core."):
            read.append(name)
        return object.__getattribute__(self, name)

    return type(state.__name__, (state,), {"__slots__": (), "__getattribute__": getattribute})
