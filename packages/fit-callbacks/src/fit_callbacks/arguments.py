"""Check the arguments of callbacks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

__all__ = ["check_callable", "check_number", "check_whole", "names_of"]


def check_number(name: str, value: Any, interval: str) -> None:
    """Check that a number lies in an interval.

    Args:
        name: the name of the argument, for the message.
        value: its value.
        interval: such as `"[0, 1)"` for 0 or more and below 1, or `"(0, inf)"` for above 0.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"expected {name} to be a number, got {value!r}")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    number = float(value)
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        bounds = [f"{low:g} or more" if interval[0] == "[" else f"above {low:g}"]
        if math.isfinite(high):
            bounds.append(f"at most {high:g}" if interval[-1] == "]" else f"below {high:g}")
        elif math.isinf(number):
            bounds.append("finite")
        raise ValueError(f"expected {name} to be {' and '.join(bounds)}, got {value!r}")


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Check that a number is an int, and not below `at_least`.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} to be a whole number, got {value!r}")
    if value < at_least:
        raise ValueError(f"expected {name} to be {at_least} or more, got {value}")


def check_callable(name: str, value: Any, example: str) -> None:
    """Check that something is a function or another callable.

    Raises:
        TypeError: it is not. The message contains the example.
    """
    if not callable(value):
        raise TypeError(f"expected {name} to be a function such as {example}, got {value!r}")


def names_of(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name, or several, as a tuple.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, str):
        return (value,)
    names = tuple(value) if isinstance(value, Iterable) else ()
    if isinstance(value, Iterable) and all(isinstance(part, str) for part in names):
        return names
    raise TypeError(f'expected {name} to be a name such as "head", or a list of names, got {value!r}')
