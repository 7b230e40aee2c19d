"""Draw the confusion matrix as a picture in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from fit_core import Callback, RunnerState, metric_name
from torch import Tensor

from .harmless import Harmless
from .tensorboard import TensorBoard

if TYPE_CHECKING:
    from .figure import Figure

__all__ = ["ConfusionMatrix"]


class ConfusionMatrix(Callback):
    """Add the confusion matrix of each validation to TensorBoard as a picture. A metric of the Runner counts it.

    Needs matplotlib (`pip install "fit-callbacks[plot]"`).

    Args:
        board: the TensorBoard callback of the run.
        classes: the names of the classes in their order. None shows numbers.
        metric: the name of the metric whose `compute` returns the matrix `(C, C)`: rows are the true classes,
            columns the predicted ones, entries counts or shares. `ConfusionMatrix` of fit-metrics has this name, and
            torchmetrics has `MulticlassConfusionMatrix`.

    Attributes:
        matrix: the matrix `(C, C)` of the last validation, on the CPU. None before it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (before the first step).
        TypeError: `board` or `classes` is something else.
        ValueError: the Runner does not have the metric (before the first step). If the matrix has another size than
            `classes`, a warning says so.

    Examples:
        >>> board = TensorBoard("runs/a")
        >>> metrics = [fit_metrics.ConfusionMatrix(2)]
        >>> callbacks = [board, ConfusionMatrix(board, ["cat", "dog"])]
        >>> Runner(model, optimizer, criterion, metrics, callbacks).fit(loader, val_loader=val_loader)
    """

    def __init__(
        self, board: TensorBoard, classes: Sequence[str] | None = None, metric: str = "ConfusionMatrix"
    ) -> None:
        if not isinstance(board, TensorBoard):
            raise TypeError(f"expected board to be the run's TensorBoard callback, got {type(board).__name__}")
        if isinstance(classes, str) or not isinstance(classes, (Iterable, type(None))):
            raise TypeError(f'expected classes to be a list of names such as ["cat", "dog"], or None, got {classes!r}')
        if not isinstance(metric, str):
            raise TypeError(f'expected metric to be a name such as "ConfusionMatrix", got {metric!r}')
        self.board = board
        self.classes = None if classes is None else list(map(str, classes))
        self.metric = metric
        self.matrix: Tensor | None = None
        self._harmless = Harmless("ConfusionMatrix")

    def on_begin(self, state: RunnerState) -> None:
        """Check that the Runner has the metric, and that matplotlib is installed."""
        from . import figure  # noqa: F401

        self._harmless.begin()
        if self._find(state) is None:
            names = ", ".join(map(metric_name, state.metrics)) or "none"
            raise ValueError(
                f"expected a metric of the Runner named {self.metric!r}, got {names}. "
                "Add it: metrics=[fit_metrics.ConfusionMatrix(num_classes)]"
            )

    def on_loader_end(self, state: RunnerState) -> None:
        """Draw the matrix, which is summed over all processes here."""
        metric = self._find(state)
        if state.is_train or metric is None:  # predict does not compute metrics
            return
        with self._harmless("could not draw the matrix"):
            self.matrix = self._checked(torch.as_tensor(metric.compute()).cpu())
            if self.board.writer is not None:
                self.board.add_figure(state, f"{state.loader_name}/confusion", self.draw())

    def _checked(self, matrix: Tensor) -> Tensor:
        if matrix.dim() != 2 or (self.classes is not None and len(matrix) != len(self.classes)):
            expected = (
                "(C, C)" if self.classes is None else f"({len(self.classes)}, {len(self.classes)}), as classes has"
            )
            raise ValueError(f"expected {self.metric} to return a matrix {expected}, got {tuple(matrix.shape)}")
        return matrix

    def draw(self) -> Figure:
        """Return the matrix as a picture: colours are shares of the true class, numbers are the entries.

        Raises:
            ValueError: there was no validation yet.
        """
        from .figure import Figure

        if self.matrix is None:
            raise ValueError("expected a matrix, got none yet. Validate or evaluate first")
        matrix = self.matrix.double()
        totals = matrix.sum(1, keepdim=True)
        shares = (matrix / torch.where(totals > 0, totals, 1.0)).tolist()
        classes = self.classes or [str(number) for number in range(len(matrix))]
        size = len(classes)
        figure = Figure(figsize=(2 + 0.45 * size, 1.6 + 0.45 * size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(size), classes, rotation=45, ha="right")
        axes.set_yticks(range(size), classes)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if size <= 30:
            for row in range(size):
                for column in range(size):
                    colour = "white" if shares[row][column] > 0.5 else "black"
                    axes.text(
                        column,
                        row,
                        _text(self.matrix[row, column].item()),
                        ha="center",
                        va="center",
                        color=colour,
                        size=8,
                    )
        return figure

    def _find(self, state: RunnerState) -> Any:
        """Return the metric of this loader, which is a copy in an evaluation during a run."""
        return next((metric for metric in state.metrics if metric_name(metric) == self.metric), None)


def _text(entry: float) -> str:
    return str(entry) if isinstance(entry, int) else f"{entry:.2f}"
