"""Let a run continue when a callback that only watches it fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Harmless"]


class Harmless:
    """Turn the errors of a callback that only watches into warnings, one of each kind per run.

    Args:
        name: the name of the callback.

    Examples:
        >>> with self.harmless("could not write log.csv"):
        ...     write()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()

    def begin(self) -> None:
        """Warn again in another run."""
        self._said.clear()

    @contextmanager
    def __call__(self, what: str, then: str = "") -> Iterator[None]:
        """Warn about an error inside, once.

        Args:
            what: the failure, such as `could not write log.csv`.
            then: the consequence for the user, such as `but the tracker misses values`.
        """
        try:
            yield
        except Exception as error:
            if what not in self._said:
                self._said.add(what)
                rest = f", {then}" if then else ""
                warnings.warn(f"{self._name} {what}: {error!r}. Training continues{rest}", stacklevel=3)
