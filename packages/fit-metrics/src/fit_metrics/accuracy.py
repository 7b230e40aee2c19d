"""Top-k accuracy."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .base import SumMetric, real
from .inputs import class_inputs

__all__ = ["Accuracy"]


class Accuracy(SumMetric):
    """The share of samples whose class is among the k that the model holds most likely: ``correct / samples``.

    What scikit-learn's ``accuracy_score`` and ``top_k_accuracy_score`` compute. Of equal scores the lower class index
    counts as the more likely, as in ``argmax``, on every device. Several of them rank a batch once: ``Accuracy(1)``
    costs next to nothing beside ``Accuracy(5)``.

    Args:
        topk: how many guesses a sample has, 1 or more.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted, such as the border class of a segmentation.
        name: the name in the logs, ``Acc@k`` if not given.

    Shapes:
        * output ``(N, C)`` or ``(N, C, H, W)``, scores of any floating dtype; target ``(N,)``, ``(N, 1)`` or
          ``(N, H, W)``, class indices in 0..C-1, or ``(N, C)``, one-hot or soft, whose largest entry is the class.
        * output ``(N,)``, ``(N, 1)`` or ``(N, 1, H, W)``, a single logit; target of as many entries, 0 or 1, or soft.
        * output ``(N,)`` or ``(N, H, W)``, predicted classes of integer dtype; target of the same shape.

    Value:
        0-dim, in 0..1; nan when there were no samples.

    Raises:
        TypeError, ValueError: a k below 1 or above C, or output and target do not fit; in ``compute``, there were
            targets outside of 0..C-1.

    Example:
        >>> accuracy = Accuracy(2)
        >>> scores = torch.tensor([[0.1, 0.6, 0.3], [0.8, 0.0, 0.2]])
        >>> accuracy.update(scores, torch.tensor([1, 1]))
        >>> float(accuracy.compute())
        0.5
    """

    correct: Tensor
    samples: Tensor
    outside: Tensor

    def __init__(
        self, topk: int = 1, *, threshold: float = 0.0, ignore_index: int | None = None, name: str | None = None
    ) -> None:
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
            raise ValueError(f"topk must be a whole number of 1 or more, got {topk!r}")
        super().__init__(name or f"Acc@{topk}", correct=torch.long, samples=torch.long, outside=torch.long)
        self.topk = topk
        self.threshold = threshold
        self.ignore_index = ignore_index

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch. Shapes are told in the class."""
        batch = class_inputs(self.name, output, target, self.ignore_index)
        classes = batch.scores.size(1) if batch.is_scored else 1
        if self.topk > classes:
            raise ValueError(
                f"{self.name} got output {tuple(output.shape)} and target {tuple(target.shape)}: the {self.topk} most "
                f"likely of {classes if batch.is_scored else 2} classes do not tell anything"
            )
        if batch.is_scored:
            hits = _Ranked.hits(self.topk, output, target, batch.scores, batch.target)
        elif batch.scores.is_floating_point():
            hits = (batch.scores > self.threshold) == batch.target
        else:
            hits = batch.scores == batch.target
        self.correct += (hits if batch.counted is None else hits & batch.counted).sum()
        self.samples += batch.target.numel() if batch.counted is None else batch.counted.sum()
        self.outside += batch.outside.sum()

    def compute(self) -> Tensor:
        """The share over all batches; waits for the device, to see that all targets were classes."""
        if outside := int(self.outside):
            raise ValueError(
                f"{self.name}: {outside} targets were outside of the classes that the output has scores for: "
                "correct the targets, or pass ignore_index= when they mark samples to leave out"
            )
        return real(self.correct) / self.samples


class _Ranked:
    """How many classes come before the target's, in the last batch that somebody asked about; shared by all metrics.

    A batch is known by its two tensors, weakly held, and the version that autograd gives a tensor whenever it is
    changed in place. What was made in inference mode has no version, and is not shared. A captured graph that writes
    outputs where it wrote those of the last batch gives them no new version; its target, which was copied in, has one.

    Args:
        tensors: output and target of the batch.
    """

    last: _Ranked | None = None

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = [weakref.ref(one, self._forget) for one in tensors]
        self.versions = [None if one.is_inference() else one._version for one in tensors]
        self.ranks: Tensor | None = None
        self.is_asked_for_ranks = False

    @classmethod
    def hits(cls, k: int, output: Tensor, target: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """Whether the class is among the first k: bool, of the shape of ``classes``."""
        batch, last = cls(output, target), cls.last
        # The best one alone is cheaper to find. But where the last batch had to be ranked, this one will have to be.
        rank_at_once = last is not None and last.is_asked_for_ranks
        if last is not None and last.is_of(batch):
            batch, rank_at_once = last, last.ranks is not None
        cls.last = batch
        batch.is_asked_for_ranks |= k > 1
        if k == 1 and not rank_at_once:
            return scores.argmax(1) == classes
        if batch.ranks is None:
            batch.ranks = _ranks(scores, classes)
        return batch.ranks < k

    def is_of(self, other: _Ranked) -> bool:
        """It is the same batch, unchanged."""
        same = all(mine() is its() for mine, its in zip(self.tensors, other.tensors, strict=True))
        return same and None not in self.versions and self.versions == other.versions

    def _forget(self, _: Any) -> None:
        self.ranks = None


def _ranks(scores: Tensor, classes: Tensor) -> Tensor:
    """Where in 0..C-1 each class stands. Not ``topk``: its choice among equal scores differs between devices."""
    classes = classes.unsqueeze(1)
    index = torch.arange(scores.size(1), dtype=torch.int32, device=scores.device).view(-1, *[1] * (scores.dim() - 2))
    own = scores.gather(1, classes)
    return ((scores > own) | ((scores == own) & (index < classes.int()))).sum(1, dtype=torch.int32)
