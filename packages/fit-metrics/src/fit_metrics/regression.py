"""How far numbers are from their targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .base import SumMetric, gather_rows, real, several_processes
from .inputs import number_inputs

__all__ = ["R2", "MeanAbsoluteError", "MeanSquaredError"]


class MeanSquaredError(SumMetric):
    """The mean over all entries of ``(output - target) ** 2``, or its root.

    scikit-learn's ``mean_squared_error`` and, of one column, ``root_mean_squared_error``. Called ``MSE``, or ``RMSE``.

    Args:
        root: take the square root of the mean.

    Shapes:
        output of any shape, floating or integer; target of the same shape, where ``(N, 1)`` and ``(N,)`` are the same.

    Value:
        0-dim, 0 or more; nan when there were no samples.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> error = MeanSquaredError()
        >>> error.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        >>> float(error.compute())
        2.0
    """

    total: Tensor
    count: Tensor

    def __init__(self, *, root: bool = False) -> None:
        super().__init__("RMSE" if root else "MSE", total=torch.float64, count=torch.long)
        self.root = root

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add up a batch. Shapes are told in the class."""
        output, target = number_inputs(self.name, output, target)
        self.total += mse_loss(output, target, reduction="none").sum(dtype=self.total.dtype)
        self.count += target.numel()

    def compute(self) -> Tensor:
        """The mean over all batches, or its root."""
        mean = self.total / self.count
        return mean.sqrt() if self.root else mean


class MeanAbsoluteError(SumMetric):
    """The mean over all entries of ``|output - target|``.

    scikit-learn's ``mean_absolute_error``. Called ``MAE``.

    Shapes:
        output of any shape, floating or integer; target of the same shape, where ``(N, 1)`` and ``(N,)`` are the same.

    Value:
        0-dim, 0 or more; nan when there were no samples.

    Raises:
        ValueError: the shapes differ.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__("MAE", total=torch.float64, count=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add up a batch. Shapes are told in the class."""
        output, target = number_inputs(self.name, output, target)
        self.total += (output - target).abs_().sum(dtype=self.total.dtype)
        self.count += target.numel()

    def compute(self) -> Tensor:
        """The mean over all batches."""
        return self.total / self.count


class R2(SumMetric):
    """The share of the targets' variance that is explained.

    ``1 - sum((target - output) ** 2) / sum((target - mean) ** 2)``, scikit-learn's ``r2_score``, with its conventions:
    nan for less than two samples; of constant targets 1 when all are met, else 0; of several columns the plain mean.

    Args:
        num_outputs: columns D, 1 or more.

    Shapes:
        output ``(N, D)``, or with one column ``(N,)``, floating or integer; target of the same shape.

    Value:
        0-dim, 1 at most.

    Raises:
        ValueError: the shapes differ, or are not those of D columns.

    Example:
        >>> r2 = R2()
        >>> r2.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> float(r2.compute())
        0.5
    """

    # Sums of target - shift, where shift is the first target that came: sums of the targets themselves would lose the
    # variance of targets that are far from 0 (years, say), and find a variance in constant ones.
    shift: Tensor
    first: Tensor
    second: Tensor
    residual: Tensor
    count: Tensor

    def __init__(self, num_outputs: int = 1) -> None:
        if isinstance(num_outputs, bool) or not isinstance(num_outputs, int) or num_outputs < 1:
            raise ValueError(f"num_outputs must be a whole number of 1 or more, got {num_outputs!r}")
        column = (torch.float64, num_outputs)
        super().__init__("R2", shift=column, first=column, second=column, residual=column, count=torch.long)
        self.num_outputs = num_outputs
        self._is_shifted = False  # Known here, so that not every batch has to look for the first one.

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add up a batch. Shapes are told in the class."""
        output, target = number_inputs(self.name, output, target)
        if target.dim() == 1:
            output, target = output.unsqueeze(1), target.unsqueeze(1)
        if target.dim() != 2 or target.size(1) != self.num_outputs:
            raise ValueError(
                f"R2 got output {tuple(output.shape)} and target {tuple(target.shape)}, "
                f"expected (N, {self.num_outputs}): say how many columns there are, R2(num_outputs=...)"
            )
        if not len(target):
            return
        if not self._is_shifted:
            self.shift.copy_(torch.where(self.count > 0, self.shift, target[0]))
            self._is_shifted = True
        self.residual += real(output - target).square_().sum(0)
        away = target - self.shift
        self.first += away.sum(0)
        self.second += away.square_().sum(0)
        self.count += len(target)

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._is_shifted = False

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take the sums from a state, of which the shift is a part. See :meth:`SumMetric.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._is_shifted = False

    def compute(self) -> Tensor:
        """The share over all batches."""
        spread = self.second - self.first.square() / self.count
        constant = (self.residual == 0).to(spread.dtype)
        value = torch.where(spread > 0, 1 - self.residual / spread, constant).mean()
        return torch.where(self.count > 1, value, torch.nan)

    def all_reduce(self) -> None:
        """Sum over all processes, seen from one shift. See :meth:`SumMetric.all_reduce`."""
        if several_processes():
            shifts = gather_rows(self.shift.unsqueeze(0))
            counts = gather_rows(self.count.unsqueeze(0))
            shift = shifts[(counts > 0).long().argmax()]  # of the first process that has samples
            by = self.shift - shift
            self.second += 2 * by * self.first + self.count * by.square()
            self.first += self.count * by
            super().all_reduce()
            self.shift.copy_(shift)
