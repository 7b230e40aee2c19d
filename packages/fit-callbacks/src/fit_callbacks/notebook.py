"""Show a run in a notebook: one output with the progress, a table of the epochs and the curve of the loss."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterable
from html import escape
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fit_core import RunnerState

from .numbers import short
from .plot import draw
from .table import OTHERS, Row, by_group, others_of
from .terminal import loader_title, values

__all__ = ["Notebook", "in_notebook"]

ROWS = 20
"""The epochs that the table shows, the last ones."""
REST = 20
"""A drawing of the curve is followed by a pause of this many times its duration, so that it costs at most 5%."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if ipython is not None else False


class Notebook:
    """The live output. It is drawn at most once per interval, and when the run ends.

    Args:
        interval: seconds between two drawings.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._is_fit = False
        self._handle: Any = None
        self._rows: list[Row] = []
        self._point: dict[str, float] = {}
        self._forget()

    def begin(self, state: RunnerState) -> None:
        """Start a new output."""
        self._is_fit = True
        self._forget()

    def begin_loader(self, state: RunnerState) -> None:
        """Wait an interval before the progress of `evaluate` and `predict` is shown."""
        if not self._is_fit:
            self._due = time.monotonic() + self._interval

    def end_batch(self, state: RunnerState) -> None:
        """Show the progress."""
        if time.monotonic() >= self._due:
            self._show(state, self._progress(state))

    def end_loader(self, state: RunnerState) -> None:
        """Remove the progress of `evaluate` and `predict`."""
        if not self._is_fit and self._handle is not None:
            self._show(state)
            self._handle = None

    def end_epoch(self, state: RunnerState, row: Row) -> None:
        """Add the row, and a point to the curve."""
        self._rows.append(row)
        self._point = {"epoch": state.epoch + 1, **state.logs}
        if time.monotonic() >= self._due:
            self._show(state)

    def end(self, state: RunnerState) -> None:
        """Show all results."""
        if self._rows or self._handle is not None:
            self._curve_due = 0.0
            self._show(state)
        self._is_fit = False
        self._forget()

    def _forget(self) -> None:
        self._handle, self._rows, self._point = None, [], {}
        self._curve, self._drawn = "", 0
        self._due = self._curve_due = 0.0

    def _show(self, state: RunnerState, progress: str = "") -> None:
        ipython = import_module("IPython.display")  # not a dependency: every kernel of a notebook has it
        html = ipython.HTML(f"{progress}{table(self._rows)}{self._picture(state)}")
        if self._handle is None:
            self._handle = ipython.display(html, display_id=True)
        else:
            self._handle.update(html)
        self._due = time.monotonic() + self._interval

    def _progress(self, state: RunnerState) -> str:
        done = state.batch_idx + 1
        total = "" if state.num_batches is None else f"/{state.num_batches}"
        bar = f'<progress value="{done}" max="{state.num_batches}"></progress> ' if total else ""
        shown = "".join(f"&ensp;{escape(name)} {short(value)}" for name, value in values(state).items())
        return f"<div>{bar}{escape(loader_title(state))}, batch {done}{total}{shown}</div>"

    def _picture(self, state: RunnerState) -> str:
        """Return the curve of the loss as an image, drawn again if it is time. Empty without matplotlib."""
        began = time.monotonic()
        epochs = int(self._point.get("epoch", 0))
        has_news = epochs > max(1, self._drawn) and "train/loss" in self._point
        if has_news and began >= self._curve_due and find_spec("matplotlib"):
            self._drawn = epochs
            figure = draw([*state.history[: epochs - 1], self._point], ["loss"])
            self._curve = base64.b64encode(figure.png()).decode()
            self._curve_due = time.monotonic() + REST * (time.monotonic() - began)
        return f'<img alt="loss" src="data:image/png;base64,{self._curve}">' if self._curve else ""


def table(rows: list[Row]) -> str:
    """Return the last epochs as an HTML table."""
    if not rows:
        return ""
    names = by_group(dict.fromkeys(name for row in rows for name in row.names))
    first, *others = OTHERS
    head = _cells("th", [first, *names, *others, ""])
    lines = [f"<tr>{head}</tr>"]
    best = [None, *(row for row in rows if row.is_best)][-1]
    if len(rows) > ROWS:
        lines.append(f'<tr><td colspan="{len(names) + 6}">{len(rows) - ROWS} earlier epochs</td></tr>')
    for row in rows[-ROWS:]:
        results = [short(row.results[name]) if name in row.results else "" for name in names]
        epoch, *rest = others_of(row).values()
        style = ' style="font-weight: bold"' if row is best else ""  # a wide table may hide the star
        lines.append(f"<tr{style}>{_cells('td', [epoch, *results, *rest, '*' if row is best else ''])}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
