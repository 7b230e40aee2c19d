"""Keep the points of a run until they are in a TensorBoard file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from .harmless import Harmless

__all__ = ["Points"]


class Points:
    """Write values by tag and x, one per tag and x. If a file breaks, the next one gets the points that it lacks.

    Args:
        folder: where the files are.
        harmless: turns an error of a file into a warning.

    Attributes:
        writer: the SummaryWriter. None while no file is open.
    """

    def __init__(self, folder: str, harmless: Harmless) -> None:
        self.writer: Any = None
        self._folder = folder
        self._harmless = harmless
        self._values: dict[int, dict[str, float]] = {}  # by x: those that may not be in the file yet, and the last
        self._are_written = True

    def add(self, x: int, values: Mapping[str, Any]) -> None:
        """Add the numbers among values. A tag that has a value at this x keeps it."""
        here = self._values.setdefault(x, {})
        numbers = {tag: _number(value) for tag, value in values.items() if tag not in here}
        new = {tag: number for tag, number in numbers.items() if number is not None}
        here.update(new)
        self._are_written = False
        if self.writer is not None:
            with self._unless_broken():
                self._write(x, new)

    def open(self, x: int) -> None:
        """Open a file, and write the points that are not in another one.

        Args:
            x: where the run is.
        """
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides points of older files from the first x on, so the points at this x are written again.
        if self._are_written:
            self._values = {other: values for other, values in self._values.items() if other >= x}
        with self._unless_broken():
            self.writer = SummaryWriter(self._folder, purge_step=min(self._values, default=x), flush_secs=1)
            for other, values in self._values.items():
                self._write(other, values)

    def flush(self) -> None:
        """Flush all points to the file, and forget them except the last."""
        if self.writer is not None:
            with self._unless_broken():
                self.writer.flush()
                self._are_written = True
                self._values = dict(list(self._values.items())[-1:])

    def close(self) -> None:
        """Close the file."""
        writer, self.writer = self.writer, None
        with suppress(Exception):  # The file may be broken.
            if writer is not None:
                writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the points that may not be in the file yet."""
        return {"values": {x: dict(values) for x, values in self._values.items()}, "are_written": self._are_written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._values = {x: dict(values) for x, values in state_dict["values"].items()}
        self._are_written = state_dict["are_written"]

    def _write(self, x: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, x)

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """Close a file that cannot be written. The next epoch opens another."""
        is_done = False
        with self._harmless(f"could not write to {self._folder}", "and a later epoch writes the missing points"):
            yield
            is_done = True
        if not is_done:
            self.close()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # A callback may log other values than numbers.
        return None
