"""Write the history of a run to a JSON lines or CSV file."""

from __future__ import annotations

import csv
import json
import os
from io import StringIO
from typing import Any

from fit_core import Callback, RunnerState

from .harmless import Harmless
from .paths import local_path
from .ranks import print_line

__all__ = ["FileLogger"]


class FileLogger(Callback):
    """Write one row per epoch to a file: `.jsonl` for JSON lines, `.csv` for a table with a header.

    The rows are those of `state.history`. The whole file is replaced after each epoch. So it is complete at any
    moment, a column may appear late (validation every second epoch), and a resumed run has neither missing nor repeated
    rows. A file of an earlier run is renamed to `name-previous-1.csv`. If the file cannot be written, a warning says
    so, training continues, and a later epoch writes the missing rows. Writes on rank 0 only.

    Args:
        path: the path of the file, ending in `.jsonl` or `.csv`. Folders are created. For both, use two of these.

    Raises:
        ValueError: the path ends in something else.

    Examples:
        >>> FileLogger("runs/a/log.csv")
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path("path", path)
        if self.path.suffix not in (".jsonl", ".csv"):
            raise ValueError(
                f"expected a path that ends in .jsonl or .csv, got {str(path)!r}. "
                f"Write FileLogger({str(self.path / 'log.csv')!r})"
            )
        self._written: int | None = None
        self._harmless = Harmless("FileLogger")

    def on_begin(self, state: RunnerState) -> None:
        """Start a new file. Raise an error if its folder cannot be created."""
        self._written = None
        self._harmless.begin()
        if state.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Write the last epoch with everything that callbacks have added to it."""
        self._write(state)

    def on_end(self, state: RunnerState) -> None:
        """Write the last epoch. A run that could not start leaves the file of an earlier one where it is."""
        if state.history:
            self._write(state)

    def _write(self, state: RunnerState) -> None:
        if state.rank or len(state.history) == self._written:
            return
        with self._harmless(f"could not write {self.path}", "and a later epoch writes the missing rows"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._written is None and not state.history:
                self._set_aside(state)
            if state.history:
                rows = [{name: _plain(value) for name, value in row.items()} for row in state.history]
                self._replace(_json(rows) if self.path.suffix == ".jsonl" else _csv(rows))
            self._written = len(state.history)

    def _replace(self, text: str) -> None:
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            part.write_text(text)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def _set_aside(self, state: RunnerState) -> None:
        if not self.path.exists():
            return
        number = 1
        while (other := self.path.with_stem(f"{self.path.stem}-previous-{number}")).exists():
            number += 1
        self.path.rename(other)
        print_line(state, f"FileLogger: renamed {self.path} of an earlier run to {other.name}")


def _json(history: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in history)


def _csv(history: list[dict[str, Any]]) -> str:
    text = StringIO()
    columns = dict.fromkeys(name for row in history for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Convert a NumPy or torch number to Python's. Values other than numbers and strings become strings."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
