"""Sum up what the Python code of a step depends on in a text that can be compared with that of another process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from .code import class_attributes, is_looked_into, names
from .reach import Place, is_plain

__all__ = ["digest"]


def digest(places: Iterable[Place], settings: Iterable[Place]) -> str:
    """Return a text that is the same for the same code, numbers, strings and classes, in the same order.

    What the code does not name is left out, such as the folder of the run in the arguments of the program.

    Args:
        places: what the code of a step may read.
        settings: others.
    """
    places = list(places)
    kinds = {place.value if isinstance(place.value, FunctionType) else _kind(place.value) for place in places}
    named = {name for kind in kinds for code in _codes(kind) for name in names(code)}
    text = hashlib.sha256()
    for _, key, value, _ in places:
        if not isinstance(key, str):  # a number may count the hooks of a process
            text.update(f"{type(key).__name__}: {_described(value)}\n".encode())
        elif key in named or isinstance(value, type):
            text.update(f"{key}: {_described(value)}\n".encode())
    for _, key, value, _ in settings:
        text.update(f"{key}: {_described(value)}\n".encode())
    return text.hexdigest()


def _described(value: Any) -> str:
    if is_plain(value):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.requires_grad}"
    if isinstance(value, FunctionType):
        return _code(value.__code__)
    kind = _kind(value)
    return f"{kind.__qualname__} {' '.join(map(_code, _codes(kind)))}" if is_looked_into(kind) else kind.__qualname__


def _kind(value: Any) -> type:
    return value if isinstance(value, type) else type(value)


def _codes(value: FunctionType | type) -> list[CodeType]:
    """Return the code of a function, or of the methods of a class."""
    if isinstance(value, FunctionType):
        return [value.__code__]
    methods = [part for base in value.__mro__ for part in class_attributes(base).values()]
    return [method.__code__ for method in methods if isinstance(method, FunctionType)]


def _code(code: CodeType) -> str:
    return " ".join([code.co_code.hex(), *code.co_names, *_constants(code.co_consts)])


def _constants(constants: Iterable[Any]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, CodeType):
            yield _code(constant)
        else:
            yield repr(constant) if is_plain(constant) else type(constant).__name__
