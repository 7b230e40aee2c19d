"""Show a run in a terminal: a bar for each loader on stderr, and a table of the epochs on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from fit_core import RunnerState
from tqdm import tqdm

from .numbers import short
from .running import running_losses, running_metrics
from .table import Row, Table

__all__ = ["Terminal", "loader_title", "write_line"]


class Terminal:
    """Show the bar and the table.

    Args:
        interval: seconds between two redraws of the bar.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._table = Table()
        self._bars: list[Any] = []  # that of the loader, and those of evaluations inside it

    def begin(self, state: RunnerState) -> None:
        """Start a table."""
        self._table = Table()

    def begin_loader(self, state: RunnerState) -> None:
        """Draw the bar if stderr is a terminal."""
        if state.is_train or state.status != "running":  # An evaluation that raised an error has left its bar.
            self.end(state)
        columns = width_of(sys.stderr)
        bar = tqdm(
            desc=loader_title(state),
            total=state.num_batches,
            mininterval=self._interval,
            disable=columns is None or os.environ.get("TERM") == "dumb",
            leave=False,
            dynamic_ncols=True,
            # tqdm's own line with the speed needs 70 columns before the first value.
            bar_format=None if not state.num_batches or (columns or 0) >= 100 else SHORT,
        )
        self._bars.append(bar)

    def end_batch(self, state: RunnerState) -> None:
        """Advance the bar. If it was redrawn, read the values that the next redraw shows."""
        bar = self._bars[-1]
        if bar.update():
            bar.set_postfix_str(trim(values(state), room(bar)), refresh=False)

    def end_loader(self, state: RunnerState) -> None:
        """Remove the bar."""
        self._bars.pop().close()

    def end_epoch(self, state: RunnerState, row: Row) -> None:
        """Print the row."""
        width = width_of(sys.stdout)
        write_line("\n".join(self._table.lines(row, None if width is None else width - 1)))

    def end(self, state: RunnerState) -> None:
        """Remove all bars."""
        while self._bars:
            self.end_loader(state)


SHORT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining}{postfix}]"
BAR = 10
"""The smallest length of the bar itself."""


def write_line(text: str) -> None:
    """Print a line to stdout at once, without breaking a bar. A full disk or a closed pipe there does not end a run."""
    with suppress(OSError):
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def loader_title(state: RunnerState) -> str:
    """Return what is running, such as `Epoch 3/15` or `Validation`."""
    if state.is_train:
        return f"Epoch {state.epoch + 1:>{len(str(state.num_epochs))}}/{state.num_epochs}"
    return {"val": "Validation", "predict": "Prediction"}.get(state.loader_name, state.loader_name)


def width_of(stream: TextIO) -> int | None:
    """Return the columns of the terminal behind a stream, None if there is none."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def values(state: RunnerState) -> dict[str, float]:
    """Return losses and metrics so far. Reading them waits for the device."""
    return {**running_losses(state), **running_metrics(state)}


def room(bar: Any) -> int:
    """Return the characters that are left for values next to a bar of a usable length."""
    line = {**bar.format_dict, "postfix": None}
    width = line.pop("ncols") or 80
    return int(width) - len(tqdm.format_meter(**line, ncols=None)) - len(", ") - 1  # without ncols the bar has 10


def trim(values: Mapping[str, float], room: int) -> str:
    """Return as many `name=value` as fit."""
    text = ""
    for name, value in values.items():
        longer = f"{text}, {name}={short(value)}" if text else f"{name}={short(value)}"
        if len(longer) > room:
            break
        text = longer
    return text
