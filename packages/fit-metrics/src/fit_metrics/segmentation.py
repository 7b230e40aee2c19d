"""Measure how well predicted regions overlap with true ones. All pixels of all images have the same weight."""

from __future__ import annotations

from torch import Tensor

from .class_scores import ClassScore
from .confusion import ratio

__all__ = ["Dice", "Jaccard"]


class Dice(ClassScore):
    """Compute twice the overlap over the sum of both areas: `2 tp / (predicted + actual)`, which is F1 over pixels.

    Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology 26(3), 1945. It equals torchmetrics'
    `DiceScore(aggregation_level="global")`. The areas are summed over all images before the division, so an image
    may be without the class. For regions that overlap, pass `task="multilabel"`. `ClassScore` describes
    arguments and value.

    Examples:
        >>> dice = Dice()  # of a single logit per pixel
        >>> logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])  # (N, 1, H, W)
        >>> dice.update(logits, torch.tensor([[[1, 0], [0, 0]]]))  # (N, H, W)
        >>> round(float(dice.compute()), 4)
        0.6667
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """Return `2 tp / (predicted + actual)`."""
        return ratio(2 * tp, predicted + actual)


class Jaccard(ClassScore):
    """Compute intersection over union, IoU: `tp / (predicted + actual - tp)`.

    It equals scikit-learn's `jaccard_score`. `Jaccard(C)` is the mean IoU of a segmentation. The areas are summed
    over all images before the division. For regions that overlap, pass `task="multilabel"`. `ClassScore`
    describes arguments and value.

    Examples:
        >>> iou = Jaccard(2)
        >>> classes = torch.tensor([[[0, 1, 1, 1]]])  # predicted, (N, H, W)
        >>> iou.update(classes, torch.tensor([[[0, 0, 1, 1]]]))
        >>> round(float(iou.compute()), 4)
        0.5833
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """Return `tp / (predicted + actual - tp)`."""
        return ratio(tp, predicted + actual - tp)
