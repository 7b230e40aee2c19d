"""Keep the results of a run, one dict per epoch, in a list that notebooks show as a table."""

from __future__ import annotations

from html import escape

__all__ = ["History"]


class History(list[dict[str, float]]):
    """A list with one dict per epoch: `{"epoch": 1, "train/loss": 0.7, "lr": 0.1, "val/Acc@1": 0.9}`.

    A notebook shows it as a table. Otherwise it is a plain list.

    Examples:
        >>> history = runner.fit(train_loader, epochs=5, val_loader=val_loader)
        >>> [row["val/loss"] for row in history]
        [0.61, 0.44, 0.35, 0.29, 0.24]
    """

    def __add__(self, other: list[dict[str, float]]) -> History:  # type: ignore[override]  # only rows are added
        """Return a History of both."""
        return History([*self, *other])

    def _repr_html_(self) -> str:
        columns = dict.fromkeys(name for row in self for name in row)
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        rows = ("".join(f"<td>{_cell(row.get(name))}</td>" for name in columns) for row in self)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))  # A callback may log text.
