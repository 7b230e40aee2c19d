"""Send functions to other processes, and values back."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["dump_call", "dump_value", "load_value"]

_REFUSALS = (AttributeError, TypeError, ValueError, RecursionError, pickle.PicklingError)
"""The errors of pickle for a value that it cannot convert. ctypes raises ValueError for pointers."""


def dump_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return a call as bytes, for `pickle.loads` in another process.

    Raises:
        TypeError: a part of it cannot be sent. The message says what to do.
    """
    # Another process cannot import a notebook, or a script that is read from standard input.
    in_notebook = not os.path.exists(getattr(sys.modules["__main__"], "__file__", ""))
    cloudpickle = _cloudpickle()
    if not (in_notebook and (cloudpickle or getattr(fn, "__module__", None) == "__main__")):
        try:
            return pickle.dumps((fn, args, kwargs))
        except _REFUSALS as error:
            reason = str(error)
    else:
        reason = "it is defined in a notebook or on standard input"
    if cloudpickle:
        try:
            return bytes(cloudpickle.dumps((fn, args, kwargs)))
        except _REFUSALS as error:
            reason = str(error)
    advice = "" if cloudpickle else ", or pip install cloudpickle"
    raise TypeError(
        f"launch cannot send {getattr(fn, '__qualname__', fn)} and its arguments to other processes ({reason}). Define "
        f"the function at the top level of a file, and pass arguments that can be pickled{advice}"
    )


def dump_value(value: Any) -> bytes:
    """Return a value as bytes.

    Raises:
        TypeError: it cannot be pickled.
    """
    for module in (pickle, _cloudpickle()):
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer, pickle_module=module or pickle)
        except _REFUSALS as error:
            reason = error
        else:
            return buffer.getvalue()
    raise TypeError(
        f"expected a result that can be sent back, got a {type(value).__name__} ({reason}). Return numbers, tensors, "
        "lists and dicts of them, or None"
    )


def load_value(data: bytes) -> Any:
    """Return the value that `dump_value` converted to bytes, with tensors on the CPU."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


def _cloudpickle() -> Any:
    return importlib.import_module("cloudpickle") if importlib.util.find_spec("cloudpickle") else None
