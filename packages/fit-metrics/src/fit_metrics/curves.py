"""Provide areas under curves: AUROC and average precision."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Average, Task
from .dtypes import to_double
from .ranking import RankingMetric

__all__ = ["AUROC", "AveragePrecision"]


class AUROC(RankingMetric):
    """Compute the area under the receiver operating characteristic.

    It is computed as the probability that a sample of the class scores above a sample that is not of it, where equal
    scores count half (Hanley and McNeil, Radiology 143(1), 1982). It equals scikit-learn's `roc_auc_score`, with
    `multi_class="ovr"` for several classes. A class to which no sample or every sample belongs has the value nan,
    and so has the macro mean over it.

    Args:
        num_classes: C, the number of classes or labels, each of which is ranked against the rest. None for class 1 of
            two.
        average: `"macro"`, `"weighted"`, `"micro"` or None. `RankingMetric` describes them.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        ignore_index: a target that is not counted.
        name: the name in the logs.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: an argument is out of range, or the shapes are not those that `RankingMetric` describes.

    Examples:
        >>> auroc = AUROC()
        >>> auroc.update(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> float(auroc.compute())
        0.75
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        average: Average = "macro",
        task: Task | None = None,
        class_dim: int | None = None,
        ignore_index: int | None = None,
        name: str = "AUROC",
    ) -> None:
        super().__init__(name, num_classes, average, task=task, class_dim=class_dim, ignore_index=ignore_index)

    def score(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the share of pairs in the right order. Pairs of equal scores count half."""
        if not len(positives) or not len(negatives):
            return positives.new_full((), torch.nan)
        below = torch.searchsorted(negatives, positives)
        not_above = torch.searchsorted(negatives, positives, right=True)
        return to_double((below + not_above).sum()) / (2 * len(positives) * len(negatives))


class AveragePrecision(RankingMetric):
    """Compute the mean, over the samples of a class, of the precision at the threshold of their score.

    It equals scikit-learn's `average_precision_score`: the area under the steps of the precision-recall curve,
    without interpolation. 0 for a class without samples. Logged as `AP`.

    Args:
        num_classes: C, the number of classes or labels, each of which is ranked against the rest. None for class 1 of
            two.
        average: `"macro"`, `"weighted"`, `"micro"` or None. `RankingMetric` describes them.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        ignore_index: a target that is not counted.
        name: the name in the logs.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: an argument is out of range, or the shapes are not those that `RankingMetric` describes.

    Examples:
        >>> ap = AveragePrecision()
        >>> ap.update(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> round(float(ap.compute()), 4)
        0.8333
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        average: Average = "macro",
        task: Task | None = None,
        class_dim: int | None = None,
        ignore_index: int | None = None,
        name: str = "AP",
    ) -> None:
        super().__init__(name, num_classes, average, task=task, class_dim=class_dim, ignore_index=ignore_index)

    def score(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean over positives of `right / (right + wrong)` among the scores that are as high or higher."""
        if not len(positives):
            return positives.new_zeros(())
        right = len(positives) - torch.searchsorted(positives, positives)
        wrong = len(negatives) - torch.searchsorted(negatives, positives)
        return (to_double(right) / (right + wrong)).mean()
