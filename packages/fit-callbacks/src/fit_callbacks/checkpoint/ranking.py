"""Know the best epochs of a run, and the files that keep them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..monitor import Monitor
from .folder import name_of

__all__ = ["Ranking"]

Entry = tuple[float, int]
"""The value and the number of an epoch."""


class Ranking:
    """The best epochs by the monitored value, the best first.

    Args:
        keep: how many to keep.
        monitor: knows which way is better, when the run has begun.
    """

    def __init__(self, keep: int, monitor: Monitor) -> None:
        self._keep = keep
        self._monitor = monitor
        self._entries: list[Entry] = []
        self._before: list[Entry] = []

    def begin(self) -> None:
        """Forget the epochs of another run."""
        self._entries = []

    def add(self, epoch: int, value: float | None) -> tuple[list[str], list[str]]:
        """Return the names to keep an epoch under besides `last.pt`, and the files to remove for it.

        Args:
            epoch: its number.
            value: its value, None if it has none.
        """
        before = self._before = self._entries
        if value is None or not math.isfinite(value):
            return [], []
        this = value, epoch
        self._entries = self._best([*before, this])
        names = ["best.pt"] if self._entries[0] == this and this not in before else []
        if self._keep > 1 and this in self._entries and this not in before:
            names.append(name_of(epoch))
        kept = {epoch for _, epoch in self._entries}
        return names, [name_of(old) for _, old in before if old not in kept]

    def take_back(self) -> None:
        """Forget the last epoch that was added, since it could not be saved."""
        self._entries = self._before

    def state_dict(self) -> list[list[float]]:
        """Return values and epochs."""
        return [list(entry) for entry in self._entries]

    def load_state_dict(self, entries: Iterable[Iterable[float]], newer: list[Entry]) -> None:
        """Restore values and epochs.

        Args:
            entries: those that `state_dict` returned.
            newer: those of later epochs, which are in the folder although the run is resumed before them.
        """
        self._entries = self._best([*((value, int(epoch)) for value, epoch in entries), *newer])

    def _best(self, entries: list[Entry]) -> list[Entry]:
        """Return the best of several values, one per epoch, the best first."""
        ranked = sorted(entries, key=lambda entry: (self._monitor.sign * entry[0], entry[1]))
        return list({epoch: (value, epoch) for value, epoch in reversed(ranked)}.values())[::-1][: self._keep]
