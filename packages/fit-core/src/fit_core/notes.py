"""Add the epoch, the batch and its shapes to an exception."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from .metric import metric_name
from .mistakes import advice
from .state import RunnerState

__all__ = ["add_note", "describe"]

_LOADING = {"stream.py", "loaders.py"}
_BETWEEN_BATCHES = {"on_epoch_begin", "on_loader_begin", "on_loader_end", "on_epoch_end"}


def add_note(error: BaseException, state: RunnerState) -> None:
    """Add a note (PEP 678) that says where in the run an exception was raised. On Python 3.10 log it instead."""
    if not isinstance(error, Exception) or not state.loader_name:
        return
    place, number = f"epoch {state.epoch + 1}, {state.loader_name}", state.batch_idx + 1
    if _comes_from(error.__traceback__, _LOADING):
        done = state.batch_idx + ("batch" in _variables(error.__traceback__, "_run_epoch"))
        where = f"after batch {done}" if done else "at the start"
        note = f"raised while the loader fetched a batch: {place}, {where}"
    elif "batch" in (variables := _variables(error.__traceback__, "load_batch")):
        note = f"raised in {place} batch {number}:\n  batch: {describe(variables['batch'])}"
    elif _is_between_batches(variables := _variables(error.__traceback__, "call")):
        owner, hook = type(getattr(variables.get("method"), "__self__", None)).__name__, variables["hook"]
        epoch = state.epoch + (hook != "on_checkpoint")  # which follows the end of the epoch
        note = f"raised in epoch {epoch}, by {owner}.{hook}"
        if sentence := advice(error, state):
            note += f"\n  {sentence}"
    elif _variables(error.__traceback__, "end_loader"):
        note = f"raised at the end of {place}{_by_metric(error.__traceback__, 'named_values')}"
    elif state.input is None:
        return
    else:
        parts = {"input": state.input, "target": state.target, "output": state.output}
        described = "".join(f"\n  {name}: {describe(value)}" for name, value in parts.items() if value is not None)
        by = _by_metric(error.__traceback__, "measure")
        note = f"raised in {place} batch {number}{by}, on {state.device}:{described}"
        if sentence := advice(error, state):
            note += f"\n  {sentence}"
    if hasattr(error, "add_note"):
        error.add_note(f"fit: {note}")
    else:
        logging.getLogger("fit_core").error(note)


def describe(value: Any, depth: int = 3) -> str:
    """Return structure, shapes, dtypes and devices of a nested value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)} on {value.device}"
    if depth and isinstance(value, Mapping):
        parts = ", ".join(f"{name}: {describe(part, depth - 1)}" for name, part in list(value.items())[:8])
        return f"{type(value).__name__} of {len(value)} {{{parts}}}"
    if depth and isinstance(value, (list, tuple)):
        parts = ", ".join(describe(part, depth - 1) for part in value[:4])
        return f"{type(value).__name__} of {len(value)} [{parts}{', ...' if len(value) > 4 else ''}]"
    return type(value).__name__


def _by_metric(traceback: TracebackType | None, function: str) -> str:
    metric = _variables(traceback, function).get("metric")
    return "" if metric is None else f", by the metric {metric_name(metric)}"


def _is_between_batches(call: dict[str, Any]) -> bool:
    """Return whether the variables of `Run.call` are those of a hook that is not about a batch."""
    hook = call.get("hook")
    return hook in _BETWEEN_BATCHES or (hook == "on_checkpoint" and not call["self"].is_in_loader)


def _variables(traceback: TracebackType | None, function: str) -> dict[str, Any]:
    """Return the variables of a function of this package in a traceback, or an empty dict if it is not there."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name == function and Path(code.co_filename).parent == Path(__file__).parent:
            return traceback.tb_frame.f_locals
        traceback = traceback.tb_next
    return {}


def _comes_from(traceback: TracebackType | None, files: set[str]) -> bool:
    """Return whether one of these files of the package is in a traceback."""
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        if path.name in files and path.parent == Path(__file__).parent:
            return True
        traceback = traceback.tb_next
    return False
