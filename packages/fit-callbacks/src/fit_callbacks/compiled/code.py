"""Look into functions and classes of the user, for the variables that they read."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any

__all__ = ["Enclosed", "class_attributes", "global_variables", "is_looked_into", "is_users", "names"]

OTHERS = ("fit_core", "fit_callbacks", "fit_metrics", "fit_distributed", "torch", "numpy")
"""Packages whose objects are not looked into, except for modules."""


class Enclosed(Mapping[str, Any]):
    """The variables that a function encloses, by name, with their values at any time.

    Args:
        function: the function.
    """

    def __init__(self, function: FunctionType) -> None:
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def __getitem__(self, name: str) -> Any:
        """Return a value, None if it is not assigned yet."""
        try:
            return self._cells[name].cell_contents
        except ValueError:
            return None

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._cells)

    def __len__(self) -> int:
        """Return their number."""
        return len(self._cells)


def global_variables(function: FunctionType) -> dict[str, Any]:
    """Return the global variables that a function of the user names."""
    found = function.__globals__
    if not is_users(found.get("__name__", "")):
        return {}
    return {name: found[name] for name in names(function.__code__) if name in found}


def class_attributes(kind: type) -> dict[str, Any]:
    """Return the attributes of a class that a step may read, without those of its bases."""
    attributes = {name: part for name, part in vars(kind).items() if name != "__init__"}  # it ran before
    return {name: part for name, part in attributes.items() if name[:2] != "__" or isinstance(part, FunctionType)}


def names(code: CodeType) -> Iterator[str]:
    """Yield the names and strings in a piece of code, and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)
        elif isinstance(constant, str):
            yield constant


def is_looked_into(kind: type) -> bool:
    """Return whether attributes of an object may matter: unless its class is ours, or of torch or NumPy."""
    return kind.__module__.split(".")[0] not in OTHERS


@cache
def is_users(module: str) -> bool:
    """Return whether a module is neither part of Python nor installed."""
    if module in sys.builtin_module_names or module.split(".")[0] in OTHERS:
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    is_installed = "site-packages" in file or "dist-packages" in file
    return not is_installed and not file.startswith(sysconfig.get_path("stdlib"))
