"""Provide precision, recall and F1: scores of a class, averaged over classes."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .arguments import Average, Task, check_average
from .confusion import MatrixMetric, ratio

__all__ = ["F1", "ClassScore", "Precision", "Recall"]


class ClassScore(MatrixMetric):
    """Base of scores that are computed for each class and averaged over classes. A subclass defines `score`.

    Args:
        num_classes: C, the number of classes or labels, 2 or more. None for the score of class 1 of two.
        average: `"macro"` is the mean over the classes that occur as target or as prediction, or over all labels.
            `"weighted"` is the mean weighted by the number of targets. `"micro"` is the score of the counts summed
            over classes. None is the score of each class, which a Runner does not log.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted.
        name: the name in the logs, by default that of the class. `F1(10, average="micro", name="F1/micro")`.

    Value:
        0-dim, in 0..1, or `(C,)` with `average=None`. A ratio 0 / 0 in it is 0, as in scikit-learn. nan without
        samples.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: an argument is out of range, or the shapes are not those that `MatrixMetric` describes.
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        average: Average = "macro",
        task: Task | None = None,
        class_dim: int | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        name: str | None = None,
    ) -> None:
        check_average(average, num_classes)
        super().__init__(
            self.default_name() if name is None else name,
            num_classes,
            task=task,
            class_dim=class_dim,
            threshold=threshold,
            ignore_index=ignore_index,
        )
        self.average = average

    @abstractmethod
    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """Return the score of each class.

        Args:
            tp: how many samples are of the class and were predicted to be. int64, `(C,)` or 0-dim.
            predicted: how many samples were predicted to be of the class, likewise.
            actual: how many samples are of the class, likewise.
        """

    def compute(self) -> Tensor:
        """Return the score over all batches. Waits for the device."""
        matrix = self.counts()
        if self.task == "multilabel":
            tp, predicted, actual = matrix[:, 1, 1], matrix[:, :, 1].sum(1), matrix[:, 1].sum(1)
            takes_part = torch.ones_like(actual, dtype=torch.bool)
        else:
            tp, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
            takes_part = predicted + actual > 0
        if self.average == "micro":
            value = self.score(tp.sum(), predicted.sum(), actual.sum())
        else:
            value = self.score(tp, predicted, actual)
        if self.num_classes is None:
            value = value[1]
        elif self.average == "macro":
            value = value.sum() / takes_part.sum()
        elif self.average == "weighted":
            value = ratio(value * actual, actual.sum()).sum()
        return torch.where(matrix.sum() > 0, value, torch.nan)


class Precision(ClassScore):
    """Compute the share of the samples predicted to be of a class that are: `tp / predicted`. 0 without any.

    It equals scikit-learn's `precision_score`. `ClassScore` describes arguments and value.

    Examples:
        >>> precision = Precision()  # of a single logit
        >>> precision.update(torch.tensor([2.0, 1.0, -3.0]), torch.tensor([1, 0, 1]))
        >>> float(precision.compute())
        0.5
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """Return `tp / predicted`."""
        return ratio(tp, predicted)


class Recall(ClassScore):
    """Compute the share of the samples of a class that were recognized: `tp / actual`. 0 without any.

    It equals scikit-learn's `recall_score`. `ClassScore` describes arguments and value.

    Examples:
        >>> recall = Recall(3)
        >>> recall.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]))
        >>> float(recall.compute())
        0.5
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """Return `tp / actual`."""
        return ratio(tp, actual)


class F1(ClassScore):
    """Compute the harmonic mean of precision and recall: `2 tp / (predicted + actual)`. 0 if both are 0.

    It equals scikit-learn's `f1_score`. `ClassScore` describes arguments and value.

    Examples:
        >>> f1 = F1(3, task="multilabel", average="micro")
        >>> logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 1.0]])
        >>> f1.update(logits, torch.tensor([[1, 0, 1], [0, 1, 0]]))
        >>> round(float(f1.compute()), 4)
        0.8571
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """Return `2 tp / (predicted + actual)`."""
        return ratio(2 * tp, predicted + actual)
