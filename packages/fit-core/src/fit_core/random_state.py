"""Capture and restore the global random generators of Python, NumPy, torch and the accelerator."""

from __future__ import annotations

import ctypes
import random
import sys
from typing import Any

import torch

__all__ = ["get_random_state", "packed", "set_random_state"]


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Capture every global random generator. NumPy's is captured if NumPy is imported."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        state["numpy"] = _numpy.get_state()
    if device.type != "cpu":
        state["accelerator"] = torch.get_device_module(device).get_rng_state(device)
    return state


def packed(state: dict[str, Any]) -> dict[str, Any]:
    """Return a captured state to save, in which the 625 numbers of Python and the 624 of NumPy are tensors.

    As numbers they would take most of the time to save and load a small run.
    """
    return {name: _packed(value) for name, value in state.items()}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore every global random generator that `get_random_state` captured, packed or not."""
    random.setstate(_unpacked(state["python"]))
    torch.set_rng_state(state["torch"])
    if "numpy" in state and (numpy := sys.modules.get("numpy")):
        numpy.random.set_state(_unpacked(state["numpy"]))
        _numpy.forget()
    if "accelerator" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["accelerator"], device)


def _packed(value: Any) -> Any:
    if not isinstance(value, tuple):  # NumPy has other generators too.
        return value
    first, numbers, *rest = value
    return [first, torch.tensor(list(map(int, numbers))), *rest]


def _unpacked(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    first, numbers, *rest = value
    return (first, tuple(numbers.tolist()), *rest)


class _NumpyState:
    """Capture NumPy's generator, and only compare it as long as nobody draws from it.

    `numpy.random.get_state` takes 30 us, and is called twice per epoch: too much for epochs of one batch. The
    2500 bytes of the Mersenne Twister are read in 1 us. As long as they are the same, nothing was drawn. The one
    exception is a normal number that NumPy has set aside, and then the state is captured again.
    """

    def __init__(self) -> None:
        self._bytes = b""
        self._state: Any = None

    def forget(self) -> None:
        """Capture the state again. A restored one may have a normal number aside and the same bytes."""
        self._state = None

    def get_state(self) -> Any:
        random_module = sys.modules["numpy"].random
        generator: Any = random_module.get_bit_generator() if hasattr(random_module, "get_bit_generator") else None
        if type(generator).__name__ != "MT19937":
            return random_module.get_state()
        now = ctypes.string_at(generator.ctypes.state_address, 2500)
        if self._state is None or now != self._bytes or self._state[3]:
            self._bytes, self._state = now, random_module.get_state()
        return self._state


_numpy = _NumpyState()
