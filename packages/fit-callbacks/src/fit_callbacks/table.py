"""Print the results of each epoch as the row of a table that fits the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .numbers import clock, short

__all__ = ["Row", "Table"]


@dataclass(frozen=True)
class Row:
    """Describe the results of an epoch.

    Attributes:
        epoch: such as `3/15`.
        results: by name, `val/loss`.
        names: the results to keep columns for, also those that this epoch does not have.
        lr: the learning rate.
        seconds: the duration of the epoch.
        left: the seconds until the end of the run.
        rate: training samples per second.
        is_best: whether its loss is the best so far.
    """

    epoch: str
    results: Mapping[str, float]
    names: Iterable[str]
    lr: float
    seconds: float
    left: float
    rate: float
    is_best: bool


@dataclass(frozen=True)
class Column:
    """Describe a column: the name of a result or of one of `OTHERS`, and its width."""

    key: str
    width: int

    @property
    def group(self) -> str:
        """Return `train` of `train/loss`."""
        return "" if self.key in OTHERS else self.key.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Return `loss` of `train/loss`."""
        return self.key if self.key in OTHERS else self.key.rpartition("/")[2]


OTHERS = {"epoch": 5, "lr": 7, "time": 7, "left": 7, "samples/s": 9}
"""The columns after the results, and their width."""

LAYOUTS = (
    (9, ("lr", "time", "left", "samples/s")),
    (9, ("lr", "time", "left")),
    (7, ("lr", "time", "left")),
    (6, ("lr", "time", "left")),
    (6, ("time", "left")),
    (6, ("time",)),
    (6, ()),
)
"""The width of a number, and the columns after the results. The first of these that fits is used."""


class Table:
    """Print rows under a header. The header is printed before the first row, and again when the columns change.

    If the terminal is too narrow for all results in one row, each epoch becomes a few lines of names and values.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._columns: list[Column] | None = None

    def lines(self, row: Row, width: int | None) -> list[str]:
        """Return the lines to print for an epoch.

        Args:
            row: its results.
            width: of the terminal. None if there is none: a row is then never split.
        """
        self._names |= dict.fromkeys(row.names)
        keys = by_group(self._names)
        columns = fit(keys, max(5, len(row.epoch)), width)
        if columns is None:
            self._columns = None
            return blocks(row, width or 0)
        head = [] if columns == self._columns else header(columns)
        self._columns = columns
        cells = cells_of(row, columns)
        line = " ".join(cell.rjust(column.width) for cell, column in zip(cells, columns, strict=True))
        return [*head, line + (" *" if row.is_best else "")]


def by_group(names: Iterable[str]) -> list[str]:
    """Return the names with those of a group (`train`, `val`) next to each other."""
    groups = {name: Column(name, 0).group for name in names}
    order = list(dict.fromkeys(groups.values()))
    return sorted(groups, key=lambda name: order.index(groups[name]))


def fit(keys: list[str], epoch: int, width: int | None) -> list[Column] | None:
    """Return the columns that fit a width, None if the results alone are too wide."""
    for number, others in LAYOUTS:
        columns = [Column("epoch", epoch)]
        columns += [Column(key, max(number, len(Column(key, 0).name))) for key in keys]
        for group in dict.fromkeys(column.group for column in columns[1:]):  # wide enough for the group's name
            members = [index for index, column in enumerate(columns) if column.group == group and index]
            missing = len(group) + 4 - sum(columns[index].width + 1 for index in members)
            columns[members[0]] = replace(columns[members[0]], width=columns[members[0]].width + max(0, missing))
        columns += [Column(key, OTHERS[key]) for key in others]
        if width is None or sum(column.width + 1 for column in columns) + 1 <= width:  # 1 for the star
            return columns
    return None


def header(columns: list[Column]) -> list[str]:
    """Return the names of the columns, with the groups in a line above."""
    above = ""
    groups = list(dict.fromkeys(column.group for column in columns if column.group))
    for group in groups:
        members = [number for number, column in enumerate(columns) if column.group == group]
        start = sum(column.width + 1 for column in columns[: members[0]])
        span = sum(column.width + 1 for column in columns[members[0] : members[-1] + 1]) - 2
        above = above.ljust(start + 1) + f" {group} ".center(span, "-")
    names = " ".join(column.name.rjust(column.width) for column in columns)
    return [above, names] if groups else [names]


def cells_of(row: Row, columns: list[Column]) -> list[str]:
    """Return the text of each cell. A result that this epoch does not have is empty."""
    others = others_of(row)
    return [
        others[column.key]
        if column.key in others
        else short(row.results[column.key], min(column.width, 9))
        if column.key in row.results
        else ""
        for column in columns
    ]


def others_of(row: Row) -> dict[str, str]:
    """Return the texts of the other columns."""
    return {
        "epoch": row.epoch,
        "lr": lr if len(lr := f"{row.lr:.3g}") <= OTHERS["lr"] else short(row.lr, OTHERS["lr"]),
        "time": clock(row.seconds),
        "left": clock(row.left, 0),
        "samples/s": f"{row.rate:.0f}",
    }


def blocks(row: Row, width: int) -> list[str]:
    """Return an epoch as lines of names and values. Lines break only between them."""
    others = others_of(row)
    lines = wrapped([f"{name} {others[name]}" for name in ("epoch", "lr", "time", "left")], "", "", width - 2)
    lines[-1] += " *" if row.is_best else ""
    names = by_group(row.results)
    for group in dict.fromkeys(Column(name, 0).group for name in names):
        columns = [column for name in names if (column := Column(name, 0)).group == group]
        pairs = [f"{column.name} {short(row.results[column.key])}" for column in columns]
        lines += wrapped(pairs, f"  {group:<5}", " " * 7, width)
    return lines


def wrapped(parts: Iterable[str], first: str, indent: str, width: int) -> list[str]:
    """Return the parts in lines of a width, none of them broken."""
    lines = [first]
    for part in parts:
        if len(lines[-1]) + 2 + len(part) > width and lines[-1] != first:
            lines.append(indent)
        lines[-1] += f"  {part}" if lines[-1] else part
    return lines
