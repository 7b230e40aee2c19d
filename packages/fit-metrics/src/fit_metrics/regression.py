"""Measure how far numbers are from their targets."""

from __future__ import annotations

import torch
from fit_core import at_least_one, has_process_group
from torch import Tensor
from torch.nn.functional import mse_loss

from .base import SumMetric
from .dtypes import to_double
from .inputs import number_inputs
from .processes import gather_rows

__all__ = ["R2", "MeanAbsoluteError", "MeanSquaredError"]


class MeanSquaredError(SumMetric):
    """Compute the mean over all entries of `(output - target) ** 2`, or its root.

    It equals scikit-learn's `mean_squared_error` and, for one column, `root_mean_squared_error`. Logged as `MSE`,
    or `RMSE`.

    Args:
        root: take the square root of the mean.

    Shapes:
        output of any shape, floating or integer. The target has the same shape, where `(N, 1)` and `(N,)` are the
        same.

    Value:
        0-dim, 0 or more, and nan without samples.

    Raises:
        TypeError: output or target is not a tensor of real numbers.
        ValueError: the shapes differ.

    Examples:
        >>> error = MeanSquaredError()
        >>> error.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        >>> float(error.compute())
        2.0
    """

    higher_is_better = False
    capturable = True
    total: Tensor
    count: Tensor

    def __init__(self, *, root: bool = False) -> None:
        super().__init__("RMSE" if root else "MSE", total=torch.float64, count=torch.long)
        self.root = root

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. The class describes the shapes."""
        output, target = number_inputs(self.name, output, target)
        self.total += mse_loss(output, target, reduction="none").sum(dtype=self.total.dtype)
        self.count += target.numel()

    def compute(self) -> Tensor:
        """Return the mean over all batches, or its root."""
        mean = self.total / self.count
        return mean.sqrt() if self.root else mean


class MeanAbsoluteError(SumMetric):
    """Compute the mean over all entries of `|output - target|`.

    It equals scikit-learn's `mean_absolute_error`. Logged as `MAE`.

    Shapes:
        output of any shape, floating or integer. The target has the same shape, where `(N, 1)` and `(N,)` are the
        same.

    Value:
        0-dim, 0 or more, and nan without samples.

    Raises:
        TypeError: output or target is not a tensor of real numbers.
        ValueError: the shapes differ.

    Examples:
        >>> error = MeanAbsoluteError()
        >>> error.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        >>> float(error.compute())
        1.0
    """

    higher_is_better = False
    capturable = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__("MAE", total=torch.float64, count=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. The class describes the shapes."""
        output, target = number_inputs(self.name, output, target)
        self.total += (output - target).abs_().sum(dtype=self.total.dtype)
        self.count += target.numel()

    def compute(self) -> Tensor:
        """Return the mean over all batches."""
        return self.total / self.count


class R2(SumMetric):
    """Compute the share of the targets' variance that is explained.

    `1 - sum((target - output) ** 2) / sum((target - mean) ** 2)`. It equals scikit-learn's `r2_score`: nan for less
    than two samples, 1 for constant targets that are all met and 0 otherwise, and the mean over several columns.

    Args:
        num_outputs: D, the number of columns, 1 or more.

    Shapes:
        output `(N, D)`, or `(N,)` for one column, floating or integer. The target has the same shape.

    Value:
        0-dim, 1 at most.

    Raises:
        TypeError: output or target is not a tensor of real numbers, or `num_outputs` is not a whole number.
        ValueError: the shapes differ or do not have D columns, or `num_outputs` is below 1.

    Examples:
        >>> r2 = R2()
        >>> r2.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> float(r2.compute())
        0.5
    """

    # Sums of target - shift, where shift is the first target of all. Sums of the targets themselves would lose the
    # variance of targets that are far from 0 (years, for example), and find a variance in constant ones.
    higher_is_better = True
    capturable = True
    shift: Tensor
    first: Tensor
    second: Tensor
    residual: Tensor
    count: Tensor

    def __init__(self, num_outputs: int = 1) -> None:
        at_least_one(num_outputs=num_outputs)
        column = (torch.float64, num_outputs)
        super().__init__("R2", shift=column, first=column, second=column, residual=column, count=torch.long)
        self.num_outputs = num_outputs
        self._is_shifted = False  # Kept on the host, so that later batches need not look for the first one.

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. The class describes the shapes."""
        output, target = number_inputs(self.name, output, target)
        if target.dim() == 1:
            output, target = output.unsqueeze(1), target.unsqueeze(1)
        if target.dim() != 2 or target.size(1) != self.num_outputs:
            raise ValueError(
                f"R2 expected output and target of shape (N, {self.num_outputs}), got {tuple(target.shape)}. "
                "Pass the number of columns: R2(num_outputs=...)"
            )
        if not len(target):
            return
        if not self._is_shifted:
            self.shift.copy_(torch.where(self.count > 0, self.shift, target[0]))
            self._is_shifted = True
        self.residual += to_double(output - target).square_().sum(0)
        distance = target - self.shift
        self.first += distance.sum(0)
        self.second += distance.square_().sum(0)
        self.count += len(target)

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._is_shifted = False

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the sums of a state, including the shift. See `SumMetric.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._is_shifted = False

    def compute(self) -> Tensor:
        """Return the share over all batches."""
        spread = self.second - self.first.square() / self.count
        constant = (self.residual == 0).to(spread.dtype)
        value = torch.where(spread <= 0, constant, 1 - self.residual / spread).mean()  # nan if the spread is nan
        return torch.where(self.count > 1, value, torch.nan)

    def all_reduce(self) -> None:
        """Add up the sums of all processes, moved to one shift. See `SumMetric.all_reduce`."""
        if has_process_group():
            shifts = gather_rows(self.shift.unsqueeze(0))
            counts = gather_rows(self.count.unsqueeze(0))
            shift = shifts[(counts > 0).long().argmax()]  # that of the first process that has samples
            difference = self.shift - shift
            self.second += 2 * difference * self.first + self.count * difference.square()
            self.first += self.count * difference
            super().all_reduce()
            self.shift.copy_(shift)
