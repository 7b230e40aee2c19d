"""Answer arguments of other libraries with the line to type here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["hints"]

Class = TypeVar("Class", bound="type[Any]")


def hints(**answers: str) -> Callable[[Class], Class]:
    """Let a class refuse arguments of other libraries, and say what to type instead.

    Args:
        **answers: for each name of another library, the end of the message.
    """

    def decorate(cls: Class) -> Class:
        original = cls.__init__

        @functools.wraps(original)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in kwargs:
                if name in answers:
                    raise TypeError(f"expected an argument of {cls.__name__}, got {name}. {answers[name]}")
            original(self, *args, **kwargs)

        cls.__init__ = init
        return cls

    return decorate
