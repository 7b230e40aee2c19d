"""How well scores put the right samples first, over all thresholds at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from fit_core import has_process_group
from torch import Tensor

from .base import BaseMetric
from .dtypes import to_double
from .inputs import Average, check_average, check_classes, class_inputs
from .processes import gather_rows

__all__ = ["AUROC", "AveragePrecision", "RankingMetric"]

Self = TypeVar("Self", bound="RankingMetric")

NOT_COUNTED, OUTSIDE = -1, -2


class RankingMetric(BaseMetric):
    """Base of exact metrics over the order of scores; a subclass has :meth:`score`.

    They are no sums: every score is kept until ``reset``, on the device, N * (C + 1) numbers or, of two classes, 2 N.
    ``compute`` sorts them. Of several processes each gets the scores of all.

    Args:
        name: the name in the logs.
        num_classes: C, 2 or more, each of which is ranked against the rest; None for class 1 of two.
        average: ``"macro"``, the mean over all classes; ``"weighted"``, the mean weighted by the number of targets,
            over the classes that have any; ``"micro"``, one ranking of all scores of all classes; None, the value of
            each class, which a Runner does not log.
        ignore_index: a target that is not counted.

    Shapes:
        * output ``(N, C)`` or ``(N, C, H, W)``, floating: probabilities, when all are in 0..1 and those of a sample add
          up to 1, else logits, which become probabilities by a softmax; target ``(N,)``, ``(N, 1)`` or ``(N, H, W)``,
          class indices in 0..C-1, or ``(N, C)``, one-hot or soft, whose largest entry is the class.
        * without num_classes, output ``(N,)``, ``(N, 1)`` or ``(N, 1, H, W)``, logits or probabilities of class 1; or
          two logits, ``(N, 2)``; target 0 or 1.

    Value:
        0-dim, in 0..1, or ``(C,)`` with ``average=None``; nan when there were no samples, or a score was nan.

    Raises:
        TypeError, ValueError: arguments, or output and target, do not fit; in ``compute``, there were targets outside
            of the classes.
    """

    def __init__(self, name: str, num_classes: int | None, average: Average, ignore_index: int | None) -> None:
        check_classes(num_classes)
        check_average(average, num_classes)
        self.name = name
        self.num_classes = num_classes
        self.average = average
        self.ignore_index = ignore_index
        self._device = torch.device("cpu")
        self.reset()

    @abstractmethod
    def score(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """The value of one class, 0-dim.

        Args:
            positives: scores of its samples, sorted upwards.
            negatives: scores of the other samples, sorted upwards.
        """

    def reset(self) -> None:
        """Forget all batches."""
        columns = () if self.num_classes is None else (self.num_classes,)
        self._scores = [torch.empty(0, *columns, device=self._device)]
        self._targets = [torch.empty(0, dtype=torch.int32, device=self._device)]

    def update(self, output: Tensor, target: Tensor) -> None:
        """Keep the scores of a batch. Shapes are told in the class."""
        batch = class_inputs(self.name, output, target, self.ignore_index, self.num_classes)
        scores, classes = batch.scores, batch.scores.size(1) if batch.is_scored else 1
        if not scores.is_floating_point():
            raise TypeError(f"{self.name} ranks scores, its output is {scores.dtype}: pass logits")
        if classes != self.num_classes and (classes > 2 or self.num_classes is not None):
            raise ValueError(
                f"{self.name}(num_classes={self.num_classes}) got output {tuple(output.shape)}: pass the number "
                "of classes that it has logits of, and leave it out for a single logit"
            )
        if self.num_classes is not None:
            scores = scores.movedim(1, -1).reshape(-1, classes)
        elif classes == 2:
            scores = to_double(scores[:, 1]) - to_double(scores[:, 0])
        target = batch.target.masked_fill(batch.outside, OUTSIDE)
        if batch.counted is not None:
            target = target.masked_fill(~batch.counted, NOT_COUNTED)
        # A copy: what a compiled model returned may be overwritten by its next call.
        self._scores.append((scores.flatten() if self.num_classes is None else scores).clone())
        self._targets.append(target.flatten().int())

    def compute(self) -> Tensor:
        """The value over all batches; waits for the device."""
        scores, targets = torch.cat(self._scores), torch.cat(self._targets)
        if outside := int((targets == OUTSIDE).sum()):
            raise ValueError(
                f"{self.name}: {outside} targets were outside of 0..{(self.num_classes or 2) - 1}: "
                "correct them, or pass ignore_index= when they mark samples to leave out"
            )
        counted = targets != NOT_COUNTED
        scores, targets = to_double(scores[counted]), targets[counted]
        if self.num_classes is None:
            return self._one(scores, targets == 1)
        if not _are_probabilities(scores):
            scores = scores.softmax(1)
        actual = targets.unsqueeze(1) == torch.arange(self.num_classes, device=targets.device)
        if self.average == "micro":
            return self._one(scores.flatten(), actual.flatten())
        values = torch.stack([self._one(scores[:, c], actual[:, c]) for c in range(self.num_classes)])
        if self.average == "macro":
            return values.mean()
        if self.average == "weighted":
            samples = actual.sum(0)
            return torch.where(samples > 0, values * samples, 0).sum() / samples.sum()
        return values

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the scores to ``device``."""
        self._device = torch.device(device)
        self._scores = [scores.to(self._device) for scores in self._scores]
        self._targets = [targets.to(self._device) for targets in self._targets]
        return self

    def all_reduce(self) -> None:
        """Take the scores of all processes: each calls it, once, before :meth:`compute`.

        A process may have any number of samples, or none. Does nothing where there is one process.
        """
        if has_process_group():
            self._scores = [gather_rows(to_double(torch.cat(self._scores)))]
            self._targets = [gather_rows(torch.cat(self._targets))]

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the scores and targets."""
        return {"scores": torch.cat(self._scores), "targets": torch.cat(self._targets)}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take scores and targets from what :meth:`state_dict` gave, on any device.

        Raises:
            ValueError: the state is of another metric, or of another number of classes. Nothing is changed then.
        """
        saved, own = {name: tuple(value.shape[1:]) for name, value in state_dict.items()}, self._scores[0].shape[1:]
        if saved != {"scores": tuple(own), "targets": ()}:
            raise ValueError(f"the state is of another metric: it holds {', '.join(saved)}, not {self.name}'s scores")
        self._scores = [state_dict["scores"].to(self._device)]
        self._targets = [state_dict["targets"].to(self._device)]

    def _one(self, scores: Tensor, is_class: Tensor) -> Tensor:
        if not len(scores) or scores.isnan().any():  # nan has no place in an order
            return scores.new_full((), torch.nan)
        return self.score(scores[is_class].sort().values, scores[~is_class].sort().values)


class AUROC(RankingMetric):
    """The area under the receiver operating characteristic.

    Computed as what it is: the probability that a sample of the class scores above one that is not of it, where equal
    scores count half (Hanley and McNeil, Radiology 143(1), 1982). scikit-learn's ``roc_auc_score``, with
    ``multi_class="ovr"`` of several classes. nan for a class that no sample or every sample is of, and then also for
    the plain mean.

    Args:
        num_classes: C, 2 or more, each of which is ranked against the rest; None for class 1 of two.
        average: ``"macro" | "weighted" | "micro" | None``; this, shapes and value are told in :class:`RankingMetric`.
        ignore_index: a target that is not counted.
        name: the name in the logs.

    Example:
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
        ignore_index: int | None = None,
        name: str = "AUROC",
    ) -> None:
        super().__init__(name, num_classes, average, ignore_index)

    def score(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Pairs in the right order, and half of those that are equal, over all pairs."""
        if not len(positives) or not len(negatives):
            return positives.new_full((), torch.nan)
        below = torch.searchsorted(negatives, positives)
        not_above = torch.searchsorted(negatives, positives, right=True)
        return to_double((below + not_above).sum()) / (2 * len(positives) * len(negatives))


class AveragePrecision(RankingMetric):
    """The mean over the samples of a class of the precision at the threshold that just lets the sample in.

    scikit-learn's ``average_precision_score``: the area under the steps of the precision-recall curve, not
    interpolated. 0 for a class that no sample is of. Called ``AP``.

    Args:
        num_classes: C, 2 or more, each of which is ranked against the rest; None for class 1 of two.
        average: ``"macro" | "weighted" | "micro" | None``; this, shapes and value are told in :class:`RankingMetric`.
        ignore_index: a target that is not counted.
        name: the name in the logs.

    Example:
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
        ignore_index: int | None = None,
        name: str = "AP",
    ) -> None:
        super().__init__(name, num_classes, average, ignore_index)

    def score(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Mean over positives of ``right / (right + wrong)``, counted among what scores as high or higher."""
        if not len(positives):
            return positives.new_zeros(())
        right = len(positives) - torch.searchsorted(positives, positives)
        wrong = len(negatives) - torch.searchsorted(negatives, positives)
        return (to_double(right) / (right + wrong)).mean()


def _are_probabilities(scores: Tensor) -> bool:
    """``(N, C)`` as a softmax gives them; the sum of those in bf16 is off by less than a hundredth."""
    return bool(((scores >= 0) & (scores <= 1)).all() & ((scores.sum(1) - 1).abs() < 0.01).all())
