"""A picture of a run's curves."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fit_core import History
    from matplotlib.figure import Figure

__all__ = ["plot_history"]


def plot_history(history: History, path: str | PathLike[str] | None = None) -> Figure:
    """Draw what ``Runner.fit`` returned: a panel for the loss and one for each metric, training beside validation.

    Needs matplotlib (``pip install fit-callbacks[plot]``). Shows nothing by itself: a notebook shows the figure that
    is the last value of a cell.

    Args:
        history: one dict an epoch.
        path: where to save the picture, its ending tells the format; folders are made.

    Returns:
        The figure.

    Raises:
        ValueError: the history is empty.

    Example:
        >>> history = runner.fit(train_loader, epochs=5, val_loader=val_loader)
        >>> plot_history(history, "runs/a/curves.png")
    """
    if not history:
        raise ValueError("the history is empty: no epoch was completed, there is nothing to draw")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = dict.fromkeys(key for row in history for key in row if key.startswith(("train/", "val/")))
    names = list(dict.fromkeys(key.split("/", 1)[1] for key in keys))
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for prefix, style in (("train", "C0-"), ("val", "C1-")):
            points = [(row["epoch"], row[f"{prefix}/{name}"]) for row in history if f"{prefix}/{name}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=prefix, marker="." if len(points) < 40 else "")
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure
