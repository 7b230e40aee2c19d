"""The history of a run in a file that anything can read."""

from __future__ import annotations

import csv
import json
import os
from io import StringIO

from fit_core import Callback, History, RunnerState

from .paths import local_path
from .ranks import print_line

__all__ = ["FileLogger"]


class FileLogger(Callback):
    """Writes one row an epoch into a file: ``.jsonl`` for JSON lines, ``.csv`` for a table with a header.

    The rows are those of ``state.history``. The file is replaced as a whole after each epoch, so it is complete at any
    moment, a column that comes late (validation in each second epoch) has its place, and a resumed run leaves neither a
    gap nor a row twice. A file of an earlier run is set aside as ``name-previous-1.csv``. Writes on rank 0 only.

    Args:
        path: of the file, ending in ``.jsonl`` or ``.csv``; folders are made. For both, use two of these.

    Raises:
        ValueError: the path ends in something else.

    Example:
        >>> FileLogger("runs/a/log.csv")
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path("path", path)
        if self.path.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"the path must end in .jsonl or .csv, got {str(path)!r}")
        self._written: int | None = None

    def on_begin(self, state: RunnerState) -> None:
        """Nothing of this run is written yet. Refuse a folder that cannot be made."""
        self._written = None
        if state.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Write the epoch before, with all that callbacks have added to it."""
        self._write(state)

    def on_end(self, state: RunnerState) -> None:
        """Write the last epoch."""
        self._write(state)

    def _write(self, state: RunnerState) -> None:
        if state.rank or len(state.history) == self._written:
            return
        if self._written is None and not state.history:
            self._set_aside(state)
        self._written = len(state.history)
        if state.history:
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_text(_json(state.history) if self.path.suffix == ".jsonl" else _csv(state.history))
            os.replace(part, self.path)

    def _set_aside(self, state: RunnerState) -> None:
        if not self.path.exists():
            return
        number = 1
        while (other := self.path.with_stem(f"{self.path.stem}-previous-{number}")).exists():
            number += 1
        self.path.rename(other)
        print_line(state, f"FileLogger: {self.path} is of an earlier run, and is {other.name} now")


def _json(history: History) -> str:
    return "".join(json.dumps(row) + "\n" for row in history)


def _csv(history: History) -> str:
    text = StringIO()
    columns = dict.fromkeys(name for row in history for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
