"""Run a step as usual, and find what a graph would freeze in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fit_core import RunnerState
from torch import Tensor

from . import cuda
from .random_watch import RandomWatch
from .reach import PLAIN, is_same, reach, snapshot

__all__ = ["watch"]

COUNTERS = ("epoch", "batch_idx", "global_step", "samples_seen", "logs", "history", "loss_meters")
"""The fields of the state that change from batch to batch, so that a step that reads one cannot be replayed."""

CONVERSIONS = ("tolist", "numpy", "__array__", "__dlpack__")
"""The methods of a tensor that a trace does not see."""


def watch(step: Callable[[], None], state: RunnerState, parts: dict[str, Any], batch: list[Tensor]) -> str | None:
    """Run a step, and return why it cannot be a graph, None if nothing was found.

    Args:
        step: the step.
        state: the state of the run, of which it should not read what changes from batch to batch.
        parts: modules, callbacks and others by name, whose attributes it should not change.
        batch: the tensors of the batch, whose numbers it should not change.
    """
    batch = [tensor for tensor in batch if not tensor.is_inference()]  # those do not count their changes
    before, versions = snapshot(reach(parts)), [tensor._version for tensor in batch]
    with ExitStack() as stack:
        read = stack.enter_context(_reads(state))
        converted = stack.enter_context(_conversions())
        waits = stack.enter_context(cuda.waits()) if cuda.captures(state.device) else []
        random = stack.enter_context(RandomWatch())
        step()
    after = snapshot(reach(parts))
    changed = [key for key in after if not is_same(before.get(key, PLAIN), after[key])] or before.keys() - after
    if waits:
        return f"the step waits for the device ({waits[0]})"
    if read:
        return f"the step reads state.{read[0]}, which a graph would freeze"
    if converted:
        return f"the step reads numbers from a tensor by {converted[0]}, which a graph would freeze"
    if changed:
        return f"the step changes {next(iter(changed))[0]}, which a graph would not"
    if versions != [tensor._version for tensor in batch]:
        return "the step changes the tensors of its batch in place"
    return random.reason


@contextmanager
def _reads(state: RunnerState) -> Iterator[list[str]]:
    """Note the counters of the state that code outside of fit_core reads."""
    read: list[str] = []

    def getattribute(self: Any, name: str) -> Any:
        if name in COUNTERS and not sys._getframe(1).f_globals.get("__name__", "").startswith("fit_core."):
            read.append(name)
        return object.__getattribute__(self, name)

    usual = type(state)
    noting = type(usual.__name__, (usual,), {"__slots__": (), "__getattribute__": getattribute})
    object.__setattr__(state, "__class__", noting)
    try:
        yield read
    finally:
        object.__setattr__(state, "__class__", usual)


@contextmanager
def _conversions() -> Iterator[list[str]]:
    """Note the lines at which a tensor is converted to lists or to an array of NumPy."""
    lines: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        method: Any = getattr(Tensor, name)

        def noted(tensor: Tensor, *args: Any, **options: Any) -> Any:
            caller = sys._getframe(1)
            lines.append(f"{name} ({Path(caller.f_code.co_filename).name}:{caller.f_lineno})")
            return method(tensor, *args, **options)

        return noted

    with ExitStack() as stack:
        for name in CONVERSIONS:
            stack.enter_context(mock.patch.object(Tensor, name, noting(name)))
        yield lines
