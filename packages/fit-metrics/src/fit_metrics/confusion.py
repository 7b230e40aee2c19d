"""Provide the confusion matrix, and the base of metrics that are computed from it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .arguments import Task, check_num_classes
from .base import SumMetric
from .classes import ClassMetric
from .dtypes import to_double

__all__ = ["BalancedAccuracy", "ConfusionMatrix", "MatrixMetric", "ratio"]


class MatrixMetric(ClassMetric, SumMetric):
    """Base of metrics that are a formula over the confusion matrix. A subclass defines `compute`.

    Args:
        name: the name in the logs.
        num_classes: C, the number of classes or labels, 2 or more. None means 2. The matrix takes C * C * 8 bytes on
            the device, those of labels C * 32 bytes.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted, such as -100 for padding or 255 for the border of a segmentation.

    Shapes:
        * output `(N, C)`, `(N, C, ...)` or `(N, ..., C)`, floating scores, of which the largest is the predicted
          class. The target has class indices `(N, ...)` in 0..C-1, or one-hot or soft classes of the output's shape,
          whose largest entry is the class.
        * with 2 classes, output `(N,)`, `(N, 1)` or `(N, 1, ...)`, floating, a single logit. The target has as
          many entries, 0 or 1 or, if it is floating, between.
        * output `(N, ...)`, integer or bool, predicted classes. The target has the same shape.
        * with `task="multilabel"`, output `(N, C, ...)`, a logit for each label, or predicted labels, 0 or 1. The
          target has the same shape, 0 or 1 or, if it is floating, between.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: the shapes do not fit or allow two readings, or an argument is out of range. In `counts`:
            there were targets or predicted classes outside of 0..C-1, or rows that are neither one-hot nor soft.
    """

    capturable = True

    cells: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int | None,
        *,
        task: Task | None = None,
        class_dim: int | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        check_num_classes(num_classes, task)
        classes = 2 if num_classes is None else num_classes
        ClassMetric.__init__(self, classes, task=task, class_dim=class_dim, ignore_index=ignore_index)
        self._shape = (classes, 2, 2) if task == "multilabel" else (classes, classes)
        self._size = torch.Size(self._shape).numel()
        # Behind the matrix: the number of targets outside of the classes, and of unclear rows.
        SumMetric.__init__(self, name, cells=(torch.long, self._size + 2))
        self.num_classes = num_classes
        self.threshold = threshold

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch. The class describes the shapes."""
        batch = self.read_batch(output, target)
        cell = (batch.target * self._shape[-1]).add_(batch.predicted(self.threshold))
        if batch.task == "multilabel":
            first = 4 * torch.arange(self._shape[0], device=cell.device)
            cell += first.view(-1, *[1] * (cell.dim() - 2))
        cell.masked_fill_(batch.is_outside, self._size)
        if batch.is_unclear is not None:
            cell.masked_fill_(batch.is_unclear, self._size + 1)
        weight = torch.ones_like(cell) if batch.is_counted is None else batch.is_counted.long()
        self.cells.index_add_(0, cell.flatten(), weight.flatten())  # bincount would wait for the device.

    def counts(self) -> Tensor:
        """Return the matrix. Waits for the device.

        Returns:
            int64 `(C, C)`, how many samples of class i were predicted to be of class j. With `task="multilabel"`
            `(C, 2, 2)`, such a matrix of no and yes for each label.

        Raises:
            ValueError: there were targets or predicted classes outside of 0..C-1, or rows that are neither one-hot nor
                soft.
        """
        outside, unclear = self.cells[-2:].tolist()
        self.report(outside, unclear, 2 if self.task == "multilabel" else self._shape[0])
        return self.cells[:-2].view(self._shape).clone()


class ConfusionMatrix(MatrixMetric):
    """Count how many samples of class i were predicted to be of class j, in row i and column j.

    It equals scikit-learn's `confusion_matrix`, and `multilabel_confusion_matrix` with `task="multilabel"`. A
    Runner does not log a matrix. Call `compute()` yourself, in a callback's `on_loader_end` for example.

    Args:
        num_classes: C, the number of classes or labels, 2 or more.
        normalize: `"true"` divides each row by its sum, `"pred"` each column, `"all"` every entry by the number
            of samples. A row or column without samples becomes 0.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted.
        name: the name in the logs.

    Value:
        `(C, C)`, or `(C, 2, 2)` with `task="multilabel"`. int64 counts, or float64 in 0..1 if normalized.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: an argument is out of range, or the shapes are not those that `MatrixMetric` describes.

    Examples:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([2.0, -1.0, 3.0]), torch.tensor([1, 0, 0]))
        >>> matrix.compute().tolist()
        [[1, 1], [0, 1]]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        normalize: Literal["true", "pred", "all"] | None = None,
        task: Task | None = None,
        class_dim: int | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        name: str = "ConfusionMatrix",
    ) -> None:
        if normalize not in ("true", "pred", "all", None):
            raise ValueError(f"expected normalize to be 'true', 'pred', 'all' or None, got {normalize!r}")
        super().__init__(
            name, num_classes, task=task, class_dim=class_dim, threshold=threshold, ignore_index=ignore_index
        )
        self.normalize = normalize

    def compute(self) -> Tensor:
        """Return the matrix over all batches. Waits for the device."""
        matrix = self.counts()
        if self.normalize is None:
            return matrix
        dims = {"true": (-1,), "pred": (-2,), "all": (-2, -1)}[self.normalize]
        return ratio(matrix, matrix.sum(dims, keepdim=True))


class BalancedAccuracy(MatrixMetric):
    """Compute the mean over classes of the share of their samples that was recognized: mean of `tp / actual`.

    It equals scikit-learn's `balanced_accuracy_score`. Classes without samples are left out.

    Args:
        num_classes: C, 2 or more.
        task: `"binary"` or `"multiclass"`. None infers it from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted.
        name: the name in the logs.

    Value:
        0-dim, in 0..1, and nan without samples.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: an argument is out of range, or the shapes are not those that `MatrixMetric` describes.

    Examples:
        >>> accuracy = BalancedAccuracy(3)
        >>> accuracy.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 2]))
        >>> round(float(accuracy.compute()), 4)
        0.8333
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int,
        *,
        task: Task | None = None,
        class_dim: int | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        name: str = "BalancedAcc",
    ) -> None:
        if task == "multilabel":
            raise ValueError(
                'expected task="binary" or "multiclass" for BalancedAccuracy, got "multilabel". Use '
                'Recall(num_classes, task="multilabel"), the mean over labels of tp / actual'
            )
        super().__init__(
            name, num_classes, task=task, class_dim=class_dim, threshold=threshold, ignore_index=ignore_index
        )

    def compute(self) -> Tensor:
        """Return the mean over all batches. Waits for the device."""
        matrix = self.counts()
        actual = matrix.sum(1)
        return ratio(matrix.diagonal(), actual).sum() / (actual > 0).sum()


def ratio(count: Tensor, total: Tensor) -> Tensor:
    """Return `count / total` in float64, and 0 where `total`, and so `count`, is 0."""
    return to_double(count) / total.clamp(min=1)
