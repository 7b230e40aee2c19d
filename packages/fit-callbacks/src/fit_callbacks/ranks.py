"""Work with several processes: print on rank 0, use the values of rank 0, run callbacks on rank 0."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from fit_core import HOOKS, Callback, RunnerState, has_process_group

from .terminal import write_line

__all__ = ["from_rank_zero", "print_line", "rank_zero_only"]

T = TypeVar("T")
AnyCallback = TypeVar("AnyCallback", bound="Callback | type[Callback]")


def from_rank_zero(value: T) -> T:
    """Return the value of rank 0 on every rank. Call it on every rank."""
    if not has_process_group():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def print_line(state: RunnerState, text: str) -> None:
    """Print a line to stdout on rank 0, without breaking a bar."""
    if state.rank == 0:
        write_line(text)


def rank_zero_only(callback: AnyCallback) -> AnyCallback:
    """Return a callback, or a class of callbacks, whose hooks run on rank 0 only. Each hook looks up the rank.

    Use it for a callback that prints or writes, and not for one that communicates or changes the training.

    Args:
        callback: a callback (a guarded copy is returned), or a subclass of Callback, as a decorator.

    Examples:
        >>> Runner(model, optimizer, criterion, callbacks=[rank_zero_only(MyLogger())])

        >>> @rank_zero_only
        ... class MyLogger(Callback): ...
    """
    if isinstance(callback, type):
        return cast("AnyCallback", _guarded(callback))
    guarded = copy.copy(callback)
    guarded.__class__ = _guarded(type(callback))  # type: ignore[assignment]  # a subclass of the same class
    return guarded


def _guarded(kind: type[Callback]) -> type[Callback]:
    def only_on_rank_zero(method: Callable[[Any, RunnerState], None]) -> Callable[[Any, RunnerState], None]:
        @functools.wraps(method)
        def hook(self: Any, state: RunnerState) -> None:
            if state.rank == 0:
                method(self, state)

        return hook

    overridden = {name: getattr(kind, name) for name in HOOKS if getattr(kind, name) is not getattr(Callback, name)}
    hooks = {name: only_on_rank_zero(method) for name, method in overridden.items()}
    return type(kind.__name__, (kind,), {"__doc__": kind.__doc__, "__module__": kind.__module__, **hooks})
