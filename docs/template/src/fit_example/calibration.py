"""Whether a classifier is as sure as it is right."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CalibrationError"]


class CalibrationError:
    """How far confidence and accuracy lie apart: the expected calibration error, 0 for a perfectly calibrated model.

    Samples are sorted into bins by their confidence, the largest probability. The error is the mean over samples of
    the distance between the mean confidence and the accuracy of their bin.

    A metric derives from nothing: it has ``reset``, ``update`` and ``compute``, and the Runner finds the rest where it
    is there. This one keeps three sums for each bin and divides in ``compute``. Sums of two batches, or of two
    processes, can be added; the errors of two batches cannot, for their mean is not the error of both.

    Args:
        bins: how many, of equal width.
        name: the name in the logs.

    Raises:
        ValueError: there is no bin.

    Example:
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([1, 1]))  # sure twice, right once
        >>> round(float(metric.compute()), 2)
        0.5
    """

    def __init__(self, bins: int = 15, name: str = "ECE") -> None:
        if bins < 1:
            raise ValueError(f"bins must be 1 or more, got {bins}")
        self.bins = bins
        self.name = name
        self._sums = torch.zeros(3, bins, dtype=torch.float64)  # samples, their confidence, how many were right

    def to(self, device: torch.device | str) -> CalibrationError:
        """Move to ``device``. The Runner calls it when a run begins."""
        device = torch.device(device)
        # Apple's MPS has no float64.
        self._sums = self._sums.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def reset(self) -> None:
        """Forget all batches."""
        self._sums.zero_()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch. Nothing here waits for the device: no ``item()``, no ``if`` that reads a tensor.

        Args:
            output: ``(N, C)``, logits.
            target: ``(N,)``, classes.
        """
        confidence, predicted = output.detach().to(self._sums.dtype).softmax(1).max(1)
        bin = (confidence * self.bins).long().clamp(max=self.bins - 1)
        is_in_bin = bin[:, None] == torch.arange(self.bins, device=bin.device)
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == target).to(confidence.dtype)])
        self._sums += rows @ is_in_bin.to(rows.dtype)

    def compute(self) -> Tensor:
        """The error over all batches since :meth:`reset`, a 0-dim tensor; nan when there were none."""
        samples, confidence, right = self._sums
        error: Tensor = (confidence - right).abs().sum() / samples.sum()
        return error

    def all_reduce(self) -> None:
        """Add the sums of all processes.

        The Runner calls it on every process, once, before :meth:`compute`; a process without any samples takes part.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the sums, so that a run stopped in mid-epoch goes on exactly."""
        return {"sums": self._sums.clone()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take the sums from what :meth:`state_dict` gave, on any device.

        Raises:
            ValueError: the state is of another number of bins.
        """
        sums = state_dict["sums"]
        if sums.shape != self._sums.shape:
            raise ValueError(f"the state has {sums.shape[1]} bins, this metric {self.bins}: make it with as many")
        self._sums.copy_(sums.to(self._sums.dtype))
