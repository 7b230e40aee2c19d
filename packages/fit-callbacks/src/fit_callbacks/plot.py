"""Draw the curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from fit_core import Runner

if TYPE_CHECKING:
    from .figure import Figure

__all__ = ["draw", "plot_history"]


def plot_history(history: Sequence[Mapping[str, float]] | Runner, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the results of a run: a panel for the loss and one for each metric, training next to validation.

    Needs matplotlib (`pip install "fit-callbacks[plot]"`). A notebook shows the figure if it is the last value of a
    cell.

    Args:
        history: what `Runner.fit` returned, or the Runner.
        path: where to save the picture. Its ending selects the format. Folders are made.

    Returns:
        The figure, of matplotlib.

    Raises:
        ValueError: the history is empty.

    Examples:
        >>> history = runner.fit(train_loader, epochs=5, val_loader=val_loader)
        >>> plot_history(history, "runs/a/curves.png")
    """
    if isinstance(history, Runner):
        history = history.state.history
    if not history:
        raise ValueError("expected a history of one epoch or more, got an empty one. Complete an epoch first")
    keys = dict.fromkeys(key for row in history for key in row if key.startswith(("train/", "val/")))
    figure = draw(history, list(dict.fromkeys(key.split("/", 1)[1] for key in keys)))
    figure.save(path)
    return figure


def draw(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> Figure:
    """Draw a panel for each name, with a curve for `train/name` and one for `val/name`."""
    from .figure import Figure, MaxNLocator

    figure = Figure(figsize=(4.5 * max(1, len(names)), 3.2), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), number)
        for prefix, style in (("train", "C0-"), ("val", "C1-")):
            points = [(row["epoch"], row[f"{prefix}/{name}"]) for row in history if f"{prefix}/{name}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=prefix, marker="." if len(points) < 40 else "")
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
