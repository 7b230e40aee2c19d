"""Notice when something changes that a graph has frozen."""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any

import torch
from fit_core import RunnerState
from torch import Tensor, nn

__all__ = ["Guard", "Watch"]

PLAIN = (bool, int, float, str, type(None))
COUNTERS = ("epoch", "batch_idx", "global_step", "samples_seen", "logs", "history", "loss_meters")
"""The fields of the state that change from batch to batch, so that a step that reads one cannot be replayed."""


class Guard:
    """Compare the plain attributes of modules and callbacks, and the settings of an optimizer, with those recorded.

    Args:
        named: what to compare, by name: modules and callbacks.
        groups: the parameter groups of the optimizer. Their ``lr`` may change.
    """

    def __init__(self, named: dict[str, Any], groups: list[dict[str, Any]]) -> None:
        self._places = [
            (f"{name}.{key}".lstrip("."), attributes, key)
            for name, part in named.items()
            for attributes in [vars(part)]
            for key, value in attributes.items()
            if _is_plain(value)
        ]
        for number, group in enumerate(groups):
            self._places += [
                (f"{key} of the optimizer's group {number}", group, key)
                for key, value in group.items()
                if key not in ("params", "lr", "initial_lr") and _is_plain(value)
            ]
        self._pairs = [(attributes, key) for _, attributes, key in self._places]
        self._values = self._read()
        modules = [part for part in named.values() if isinstance(part, nn.Module)]
        tensors = [tensor for part in modules for tensor in (*part.parameters(False), *part.buffers(False))]
        self._parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]] + tensors
        self._needs = [parameter.requires_grad for parameter in self._parameters]
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]

    def holds(self) -> bool:
        """Return whether nothing has changed. Fast, for every batch."""
        return self._read() == self._values and [p.requires_grad for p in self._parameters] == self._needs

    def is_in_place(self) -> bool:
        """Return whether parameters and buffers are where they were. For every epoch."""
        return [parameter.data_ptr() for parameter in self._parameters] == self._addresses

    def changed(self) -> str:
        """Return the name of something that has changed."""
        for (name, _, _), old, new in zip(self._places, self._values, self._read(), strict=True):
            if old != new:
                return f"{name} ({old} -> {new})"
        return "requires_grad of a parameter"

    def _read(self) -> list[Any]:
        return [attributes.get(key, PLAIN) for attributes, key in self._pairs]


class Watch:
    """Run a step eagerly, and find what a graph would freeze in it.

    Args:
        state: the state of the run.
        modules: the modules by name, whose attributes a step should not change.

    Attributes:
        reason: why the step cannot be a graph, None if nothing was found.
    """

    def __init__(self, state: RunnerState, modules: dict[str, nn.Module]) -> None:
        self.reason: str | None = None
        self._state = state
        self._modules = modules

    def __enter__(self) -> Watch:
        self._attributes = self._all_attributes()
        self._random = self._random_states()
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
        after = self._all_attributes()
        changed = next((name for name in after if after[name] != self._attributes.get(name)), None)
        if waits:
            self.reason = f"the step waits for the device ({waits[0]})"
        elif self._read:
            self.reason = f"the step reads state.{self._read[0]}, which a graph would freeze"
        elif changed is not None:
            self.reason = f"the step changes {changed}, which a graph would not"
        elif self._random != self._random_states():
            self.reason = "the step draws random numbers from Python or NumPy, which a graph would repeat"

    def _all_attributes(self) -> dict[str, Any]:
        return {
            f"{name}.{key}".lstrip("."): value if _is_plain(value) else id(value)
            for name, module in self._modules.items()
            for key, value in vars(module).items()
        }

    def _random_states(self) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return random.getstate()
        _, numbers, place, *_ = numpy.random.get_state(legacy=True)
        return random.getstate(), numbers.tobytes(), place


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value))


def _watched(state: type, read: list[str]) -> type:
    """Return a subclass of the state's class that notes which counters code outside fit_core reads."""

    def getattribute(self: Any, name: str) -> Any:
        if name in COUNTERS and not sys._getframe(1).f_globals.get("__name__", "").startswith("fit_core."):
            read.append(name)
        return object.__getattribute__(self, name)

    return type(state.__name__, (state,), {"__slots__": (), "__getattribute__": getattribute})
