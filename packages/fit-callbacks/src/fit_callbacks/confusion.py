"""Which classes a model takes for which, as a picture in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from fit_core import Callback, RunnerState, has_process_group

from .tensorboard import TensorBoard

if TYPE_CHECKING:
    from .figure import Figure

__all__ = ["ConfusionMatrix"]


class ConfusionMatrix(Callback):
    """Counts, in each validation, which classes were taken for which, and adds the table to TensorBoard as a picture.

    Counts are kept on the device and summed over all processes. Needs matplotlib.

    Args:
        board: the TensorBoard callback of the run.
        classes: the names of the classes in their order, or their number.

    Attributes:
        counts: int64 ``(C, C)`` of the last validation; rows are the true classes, columns the predicted.

    Shapes:
        output ``(N, C)`` or ``(N, C, d1, ...)`` scores; target: class indices ``(N,)``, ``(N, 1)``, ``(N, d1, ...)``,
        or one-hot or soft as the output. Indices outside 0..C-1 (an ignored class) are not counted.

    Example:
        >>> board = TensorBoard("runs/a")
        >>> Runner(model, optimizer, criterion, callbacks=[board, ConfusionMatrix(board, ["cat", "dog"])])
    """

    def __init__(self, board: TensorBoard, classes: Sequence[str] | int) -> None:
        self.board = board
        self.classes = [str(number) for number in range(classes)] if isinstance(classes, int) else list(classes)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Count anew."""
        if not state.is_train:
            size = len(self.classes)
            self.counts = torch.zeros(size, size, dtype=torch.long, device=state.device)

    def on_batch_end(self, state: RunnerState) -> None:
        """Count a batch, without a wait for the device."""
        if state.is_train or state.target is None:
            return
        size, output, target = len(self.classes), state.output, state.target
        if output.size(1) != size:
            raise ValueError(
                f"ConfusionMatrix has {size} classes, the output {tuple(output.shape)} has {output.size(1)}"
            )
        true = (target.argmax(1) if target.shape == output.shape else target).flatten().long()
        is_class = (true >= 0) & (true < size)
        cells = torch.where(is_class, true * size + output.argmax(1).flatten(), 0)
        self.counts.view(-1).scatter_add_(0, cells, is_class.long())

    def on_loader_end(self, state: RunnerState) -> None:
        """Sum over the processes, and draw."""
        if state.is_train:
            return
        if has_process_group():
            torch.distributed.all_reduce(self.counts)
        if self.board.writer is not None and self.counts.any():  # a prediction has no targets to count
            self.board.add_figure(state, "val/confusion", self.draw())

    def draw(self) -> Figure:
        """The table as a picture: colours are shares of the true class, numbers are counts."""
        from .figure import Figure

        counts = self.counts.cpu()
        shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()
        size = len(self.classes)
        figure = Figure(figsize=(2 + 0.45 * size, 1.6 + 0.45 * size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(size), self.classes, rotation=45, ha="right")
        axes.set_yticks(range(size), self.classes)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if size <= 30:
            for row in range(size):
                for column in range(size):
                    colour = "white" if shares[row][column] > 0.5 else "black"
                    axes.text(
                        column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, size=8
                    )
        return figure
