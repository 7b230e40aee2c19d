"""Load the state of a module as a whole, or refuse it before anything is changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .models import bare_name

__all__ = ["check_state", "load_state", "state_of"]


def state_of(module: Any) -> Mapping[str, Any]:
    """Return the state of a module or another object, empty for one without a state, as a criterion may be."""
    has_state = hasattr(module, "state_dict") and hasattr(module, "load_state_dict")
    return module.state_dict() if has_state else {}


def check_state(kind: str, saved: Mapping[str, Any], module: Any) -> None:
    """Check that a module can load a state. Its names and shapes may differ if the module adapts to them.

    Lazy modules and the observers of quantization-aware training adapt. A trial on a copy of the module finds out.

    Args:
        kind: the name of the module in the message.
        saved: the state that its `state_dict()` returned.
        module: a module, or another object with a state.

    Raises:
        ValueError: the module cannot load it. The message lists the names that are missing or unexpected, and the
            shapes that differ.
    """
    own = {bare_name(name): value for name, value in state_of(module).items()}
    saved = {bare_name(name): value for name, value in saved.items()}
    wrong = {
        "missing": [name for name in own if name not in saved],
        "unexpected": [name for name in saved if name not in own],
        "shape": [
            f"{name} {_shape(saved[name])} -> {_shape(own[name])}"
            for name in own
            if name in saved and _shape(saved[name]) != _shape(own[name])
        ],
    }
    if any(wrong.values()) and not _adapts(module, saved):
        lines = "".join(f"\n  {reason}: {', '.join(names)}" for reason, names in wrong.items() if names)
        raise ValueError(f"expected a state of this {kind}, got one of another. Nothing was loaded:{lines}")


def load_state(module: Any, saved: Mapping[str, Any]) -> None:
    """Load a state, whether or not submodules were compiled when it was saved, or are now."""
    names = {bare_name(name): name for name in state_of(module)}
    if names or saved:
        module.load_state_dict({names.get(bare_name(name), name): value for name, value in saved.items()})


def _adapts(module: Any, saved: Mapping[str, Any]) -> bool:
    copies: dict[int, Any] = {}
    for buffer in module.buffers() if isinstance(module, nn.Module) else ():
        if is_lazy(buffer):  # deepcopy copies lazy parameters, and not lazy buffers
            make: Any = type(buffer)
            copies[id(buffer)] = make(device=buffer.device, dtype=buffer.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = copy.deepcopy(module, copies)
            load_state(trial, saved)
    except Exception:  # of the module's own code
        return False
    return True


def _shape(value: Any) -> tuple[int, ...] | str:
    if is_lazy(value):
        return "uninitialized"
    return tuple(value.shape) if isinstance(value, Tensor) else ()
