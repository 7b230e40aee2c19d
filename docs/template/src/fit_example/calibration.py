"""Measure whether a classifier is right as often as it is confident."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CalibrationError"]


class CalibrationError:
    """Compute the expected calibration error: the distance between confidence and accuracy, 0 for perfect calibration.

    Samples are sorted into bins by their confidence, which is the largest probability. The error is the mean over
    samples of the distance between the mean confidence and the accuracy of their bin.

    A metric has no base class. It needs `reset`, `update` and `compute`, and the rest is optional. This one keeps
    three sums per bin and divides in `compute`. The sums of two batches, or of two processes, can be added. Their
    errors cannot: the mean of the errors of two batches is not the error of both together.

    Args:
        bins: the number of bins, which have equal width.
        name: the name in the logs.

    Raises:
        ValueError: `bins` is below 1.

    Examples:
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([1, 1]))  # sure twice, right once
        >>> round(float(metric.compute()), 2)
        0.5
    """

    higher_is_better = False  # read by callbacks that look for the best epoch

    def __init__(self, bins: int = 15, name: str = "ECE") -> None:
        if bins < 1:
            raise ValueError(f"expected bins of 1 or more, got {bins}. Pass bins=15")
        self.bins = bins
        self.name = name
        self._sums = torch.zeros(3, bins, dtype=torch.float64)  # samples, their confidence, how many were right

    def to(self, device: torch.device | str) -> CalibrationError:
        """Move to `device`. The Runner calls it when a run starts."""
        device = torch.device(device)
        # Apple's MPS does not have float64.
        self._sums = self._sums.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def reset(self) -> None:
        """Forget all batches."""
        self._sums.zero_()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch. Nothing here waits for the device: no `item()`, no `if` that reads a tensor.

        Args:
            output: `(N, C)`, logits.
            target: `(N,)`, classes.
        """
        confidence, predicted = output.detach().to(self._sums.dtype).softmax(1).max(1)
        bin = (confidence * self.bins).long().clamp(max=self.bins - 1)
        is_in_bin = bin[:, None] == torch.arange(self.bins, device=bin.device)
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == target).to(confidence.dtype)])
        self._sums += rows @ is_in_bin.to(rows.dtype)

    def compute(self) -> Tensor:
        """Return the error over all batches since `reset`, a 0-dim tensor. Without samples it is nan."""
        samples, confidence, right = self._sums
        error: Tensor = (confidence - right).abs().sum() / samples.sum()
        return error

    def all_reduce(self) -> None:
        """Add the sums of all processes.

        The Runner calls it once, on every process, before `compute`. A process without samples takes part too.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the sums, so that a run can be resumed mid-epoch with the same bits."""
        return {"sums": self._sums.clone()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the sums that `state_dict` returned, on any device.

        Raises:
            ValueError: the state has another number of bins.
        """
        sums = state_dict["sums"]
        if sums.shape != self._sums.shape:
            raise ValueError(
                f"expected a state with {self.bins} bins, got {sums.shape[1]}. "
                f"Create the metric with bins={sums.shape[1]}"
            )
        self._sums.copy_(sums.to(self._sums.dtype))
