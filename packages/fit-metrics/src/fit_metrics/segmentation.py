"""How well predicted regions overlap with true ones. The pixels of all images count alike."""

from __future__ import annotations

from torch import Tensor

from .confusion import ClassScore, ratio

__all__ = ["Dice", "Jaccard"]


class Dice(ClassScore):
    """Twice the overlap over the sum of both areas: ``2 tp / (predicted + actual)``, which is F1 over pixels.

    Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology 26(3), 1945; torchmetrics'
    ``DiceScore(aggregation_level="global")``. Summed over all images before it is divided, so that an image
    without the class does no harm. Arguments, shapes and value: see :class:`ClassScore`.

    Example:
        >>> dice = Dice()  # of a single logit per pixel
        >>> logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])  # (N, 1, H, W)
        >>> dice.update(logits, torch.tensor([[[1, 0], [0, 0]]]))  # (N, H, W)
        >>> round(float(dice.compute()), 4)
        0.6667
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """``2 tp / (predicted + actual)``."""
        return ratio(2 * tp, predicted + actual)


class Jaccard(ClassScore):
    """Intersection over union, IoU: ``tp / (predicted + actual - tp)``.

    scikit-learn's ``jaccard_score``; ``Jaccard(C)`` is the mean IoU of segmentation. Summed over all images before it
    is divided. Arguments, shapes and value: see :class:`ClassScore`.
    """

    def score(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
        """``tp / (predicted + actual - tp)``."""
        return ratio(tp, predicted + actual - tp)
