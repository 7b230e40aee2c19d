"""Start the workers of a loader so that only the training process handles signals."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker, util
from types import FrameType
from typing import Any
from weakref import WeakSet

__all__ = ["READING", "open_loader"]

_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
_DEFAULTS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)

READING: WeakSet[Any] = WeakSet()
"""The persistent workers that training runs are reading. Their DataLoader would restart them for another pass."""

_is_ending: Any = None
"""Whether this process is ending, shared with the workers. Then a SIGTERM comes from it and not from a scheduler."""


def open_loader(loader: Any) -> Iterator[Any]:
    """Return `iter(loader)`. Its workers ignore the signals that this process handles.

    Schedulers, containers and terminals send a signal to all processes at once. A handler in this process lets the run
    finish the batch and be saved, and its workers have to live until then. If a training run is reading persistent
    workers of the loader, this pass gets workers of its own.
    """
    if getattr(loader, "_iterator", None) in READING:
        loader = copy.copy(loader)
        vars(loader).update(_iterator=None, persistent_workers=False)  # A DataLoader refuses to change the option.
    numbers = _handled() if hasattr(loader, "worker_init_fn") and loader.num_workers else []
    if not numbers:
        return iter(loader)
    own = loader.worker_init_fn
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # Workers inherit it, until they ignore the signals.
    loader.worker_init_fn = partial(_ignore, numbers, _shared_flag(), own)
    try:
        context = getattr(loader, "multiprocessing_context", None) or multiprocessing
        if context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # Starting it would unblock two of them before Python 3.13.
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        loader.worker_init_fn = own


def _handled() -> list[signal.Signals]:
    """Return the signals for which this process has set a handler."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return []
    numbers = [getattr(signal, name) for name in _SIGNALS]
    return [number for number in numbers if signal.getsignal(number) not in _DEFAULTS]


def _shared_flag() -> Any:
    global _is_ending
    if _is_ending is None:
        _is_ending = multiprocessing.RawValue(ctypes.c_bool, False)
        util.Finalize(None, setattr, (_is_ending, "value", True), exitpriority=100)
    return _is_ending


def _ignore(numbers: list[signal.Signals], is_ending: Any, own: Callable[[int], Any] | None, worker_id: int) -> None:
    """Set up a worker. Unlike SIG_IGN and a mask, a handler is not inherited by programs that it starts."""

    def handler(number: int, frame: FrameType | None) -> None:
        if is_ending.value and number == signal.SIGTERM:
            os._exit(0)

    for number in numbers:
        signal.signal(number, handler)
        signal.siginterrupt(number, False)
        # Python drops handlers as it ends.
        util.Finalize(None, signal.signal, (number, signal.SIG_IGN), exitpriority=0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    if own is not None:
        own(worker_id)
