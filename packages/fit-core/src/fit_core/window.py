"""Gradient accumulation: the batches whose gradients make one optimizer step, each weighted by its samples."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["Window"]


class Window:
    """Weighs the losses of ``size`` batches so that their gradients add up to those of one big batch.

    The gradient of a window is ``sum(n_i * g_i) / sum(n_i)`` for batches of ``n_i`` samples with mean gradients
    ``g_i``. As long as all batches are as large as the first, that is ``g_i / size``, and costs one division of the
    loss. Only in a window that turns out shorter or uneven are the gradients multiplied, once, before the last
    backward pass: so each process scales its own gradients, and what DDP then averages is equal everywhere.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.samples = 0  # of the batches whose gradients wait for the rest of the window
        self._expected = 0

    def divisor(self, samples: int, closes: bool, parameters: Iterable[Tensor]) -> float:
        """What to divide the mean loss of a batch by before its backward pass.

        Args:
            samples: how many samples the batch holds.
            closes: whether it is the window's last.
            parameters: what the optimizer steps; their gradients are rescaled when the window is uneven.
        """
        if not self.samples:
            self._expected = samples * self.size
        self.samples += samples
        if closes:
            if self.samples != self._expected:
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.mul_(self._expected / self.samples)
            self._expected, self.samples = self.samples, 0
        return self._expected / samples

    def state_dict(self) -> dict[str, int]:
        """Samples seen and expected."""
        return {"samples": self.samples, "expected": self._expected}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on in the window that :meth:`state_dict` described."""
        self.samples, self._expected = state_dict["samples"], state_dict["expected"]
