"""The confusion matrix, and what is computed from it: precision, recall and their kin."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from .base import SumMetric
from .dtypes import to_double
from .inputs import Average, check_average, check_classes, class_inputs

__all__ = ["F1", "BalancedAccuracy", "ClassScore", "ConfusionMatrix", "MatrixMetric", "Precision", "Recall", "ratio"]


class MatrixMetric(SumMetric):
    """Base of metrics that are a formula over the confusion matrix; a subclass has ``compute``.

    Args:
        name: the name in the logs.
        num_classes: C, 2 or more. The matrix takes C * C * 8 bytes on the device.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted.

    Shapes:
        * output ``(N, C)`` or ``(N, C, H, W)``, scores of any floating dtype, of which the largest is the predicted
          class; target ``(N,)``, ``(N, 1)`` or ``(N, H, W)``, class indices in 0..C-1, or one-hot or soft, of the
          output's shape.
        * with 2 classes, output ``(N,)``, ``(N, 1)`` or ``(N, 1, H, W)``, a single logit; target of as many entries, 0
          or 1.
        * output ``(N,)`` or ``(N, H, W)``, predicted classes of integer dtype; target of the same shape.

    Raises:
        TypeError, ValueError: arguments, or output and target, do not fit; in :meth:`counts`, there were targets or
            predicted classes outside of 0..C-1.
    """

    cells: Tensor

    def __init__(self, name: str, num_classes: int, threshold: float, ignore_index: int | None) -> None:
        check_classes(num_classes)
        super().__init__(name, cells=(torch.long, num_classes**2 + 1))  # of the matrix, and one for what fits in none
        self.num_classes = num_classes
        self.threshold = threshold
        self.ignore_index = ignore_index

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch. Shapes are told in the class."""
        batch = class_inputs(self.name, output, target, self.ignore_index, self.num_classes)
        predicted = batch.scores
        if batch.is_scored:
            predicted = predicted.argmax(1)
        elif predicted.is_floating_point():
            predicted = (predicted > self.threshold).long()
        cell = (batch.target * self.num_classes).add_(predicted).masked_fill_(batch.outside, self.num_classes**2)
        ones = torch.ones_like(cell) if batch.counted is None else batch.counted.long()
        self.cells.index_add_(0, cell.flatten(), ones.flatten())  # bincount would wait for the device

    def counts(self) -> Tensor:
        """The matrix, int64 ``(C, C)``: samples of class i that were taken for class j. Waits for the device."""
        if outside := int(self.cells[-1]):
            raise ValueError(
                f"{self.name}: {outside} targets or predicted classes were outside of 0..{self.num_classes - 1}: "
                "correct them, or pass ignore_index= when they mark samples to leave out"
            )
        return self.cells[:-1].view(self.num_classes, self.num_classes).clone()


class ConfusionMatrix(MatrixMetric):
    """How many samples of class i were taken for class j, in row i and column j; scikit-learn's ``confusion_matrix``.

    As a matrix it is not among the numbers that a Runner logs: ask for it with ``compute()``, in ``on_loader_end`` say.

    Args:
        num_classes: C, 2 or more.
        normalize: ``"true"`` divides each row by its sum, ``"pred"`` each column, ``"all"`` everything by the number of
            samples. A row or column without samples is 0.
        name: the name in the logs.
        threshold: as of :class:`MatrixMetric`, and so are the shapes.
        ignore_index: likewise.

    Value:
        ``(C, C)``, int64 counts, or float64 in 0..1 when normalized.

    Example:
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
        threshold: float = 0.0,
        ignore_index: int | None = None,
        name: str = "ConfusionMatrix",
    ) -> None:
        if normalize not in ("true", "pred", "all", None):
            raise ValueError(f"normalize must be 'true', 'pred', 'all' or None, got {normalize!r}")
        super().__init__(name, num_classes, threshold, ignore_index)
        self.normalize = normalize

    def compute(self) -> Tensor:
        """The matrix over all batches."""
        matrix = self.counts()
        if self.normalize is None:
            return matrix
        if self.normalize == "all":
            return ratio(matrix, matrix.sum())
        return ratio(matrix, matrix.sum(1 if self.normalize == "true" else 0, keepdim=True))


class BalancedAccuracy(MatrixMetric):
    """The mean over classes of the share of their samples that was recognised: mean of ``tp / actual``.

    scikit-learn's ``balanced_accuracy_score``: classes without samples do not take part.

    Args:
        num_classes: C, 2 or more.
        name: the name in the logs.
        threshold: as of :class:`MatrixMetric`, and so are the shapes.
        ignore_index: likewise.

    Value:
        0-dim, in 0..1; nan when there were no samples.
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int,
        *,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        name: str = "BalancedAcc",
    ) -> None:
        super().__init__(name, num_classes, threshold, ignore_index)

    def compute(self) -> Tensor:
        """The mean over all batches."""
        matrix = self.counts()
        actual = matrix.sum(1)
        return ratio(matrix.diagonal(), actual).sum() / (actual > 0).sum()


class ClassScore(MatrixMetric):
    """Base of what is computed for a class and averaged over classes; a subclass has :meth:`score`.

    Args:
        num_classes: C, 2 or more, of which the scores are averaged; None for the score of class 1 of two.
        average: ``"macro"``, the mean over the classes that occur, as target or as prediction; ``"weighted"``, the mean
            weighted by the number of targets; ``"micro"``, the score of the counts summed over classes; None, the score
            of each class, which a Runner does not log.
        name: the name in the logs, that of the class if not given; ``F1(10, average="micro", name="F1/micro")``.
        threshold: as of :class:`MatrixMetric`, and so are the shapes.
        ignore_index: likewise.

    Value:
        0-dim, in 0..1, or ``(C,)`` with ``average=None``; a ratio 0 / 0 in it is 0, as in scikit-learn. nan when there
        were no samples.
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        average: Average = "macro",
        threshold: float = 0.0,
        ignore_index: int | None = None,
        name: str | None = None,
    ) -> None:
        check_average(average, num_classes)
        super().__init__(
            name or type(self).__name__, 2 if num_classes is None else num_classes, threshold, ignore_index
        )
        self.average = average
        self.is_binary = num_classes is None

    @abstractmethod
    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """The score of each class.

        Args:
            tp: samples that are of the class and were predicted to be, int64 ``(C,)`` or 0-dim.
            predicted: samples that were predicted to be of the class, likewise.
            actual: samples that are of the class, likewise.
        """

    def compute(self) -> Tensor:
        """The score over all batches."""
        matrix = self.counts()
        tp, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
        if self.average == "micro":
            value = self.score(tp.sum(), predicted.sum(), actual.sum())
        else:
            value = self.score(tp, predicted, actual)
        if self.is_binary:
            value = value[1]
        elif self.average == "macro":
            value = value.sum() / (predicted + actual > 0).sum()
        elif self.average == "weighted":
            value = (value * actual).sum() / actual.sum()
        return torch.where(actual.sum() > 0, value, torch.nan)


class Precision(ClassScore):
    """Of the samples predicted to be of a class, the share that is: ``tp / predicted``; 0 where none was predicted.

    scikit-learn's ``precision_score``. Arguments, shapes and value: see :class:`ClassScore`.

    Example:
        >>> precision = Precision()  # of a single logit
        >>> precision.update(torch.tensor([2.0, 1.0, -3.0]), torch.tensor([1, 0, 1]))
        >>> float(precision.compute())
        0.5
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """``tp / predicted``."""
        return ratio(tp, predicted)


class Recall(ClassScore):
    """Of the samples that are of a class, the share that was predicted to be: ``tp / actual``; 0 where there is none.

    scikit-learn's ``recall_score``. Arguments, shapes and value: see :class:`ClassScore`.
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """``tp / actual``."""
        return ratio(tp, actual)


class F1(ClassScore):
    """The harmonic mean of precision and recall: ``2 tp / (predicted + actual)``; 0 where there is neither.

    scikit-learn's ``f1_score``. Arguments, shapes and value: see :class:`ClassScore`.

    Example:
        >>> f1 = F1(3, average="weighted")
        >>> f1.update(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> round(float(f1.compute()), 4)
        0.7778
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """``2 tp / (predicted + actual)``."""
        return ratio(2 * tp, predicted + actual)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` of counts, in float64; 0 where whole, and so part, is 0."""
    return to_double(part) / whole.clamp(min=1)
