"""Top-k accuracy."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from fit_core import at_least_one
from torch import Tensor

from .base import SumMetric
from .dtypes import to_double
from .inputs import Classes, class_inputs

__all__ = ["Accuracy"]

SMALL, TOGETHER = 4096, 16
"""A batch of at most so many scores is small; so many of them are counted together."""


class Accuracy(SumMetric):
    """The share of samples whose class is among the k that the model holds most likely: ``correct / samples``.

    What scikit-learn's ``accuracy_score`` and ``top_k_accuracy_score`` compute. Of equal scores the lower class index
    counts as the more likely, as in ``argmax``, on every device. Several of them rank a batch once: ``Accuracy(1)``
    costs next to nothing beside ``Accuracy(5)``. Of small batches a copy is kept, and 16 are counted together: to
    count a few samples takes as long as to count a few hundred.

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

    higher_is_better = True
    correct: Tensor
    samples: Tensor
    outside: Tensor

    def __init__(
        self, topk: int = 1, *, threshold: float = 0.0, ignore_index: int | None = None, name: str | None = None
    ) -> None:
        at_least_one(topk=topk)
        super().__init__(name or f"Acc@{topk}", correct=torch.long, samples=torch.long, outside=torch.long)
        self.topk = topk
        self.threshold = threshold
        self.ignore_index = ignore_index
        self._kind: tuple[Any, ...] | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch, or keep a copy to count it with others. Shapes are told in the class."""
        kind = _kind(output, target)
        if kind is None or kind != self._kind:  # The first of its kind: here it is refused, if it is to be refused.
            self._count_waiting()
            self._count(output, target)
            self._kind = kind
            return
        self._waiting.append((output.detach().clone(), target.detach().clone()))
        if len(self._waiting) == TOGETHER:
            self._count_waiting()

    def _default_name(self) -> str:
        return f"Acc@{self.topk}"

    def _count_waiting(self) -> None:
        if self._waiting:
            outputs, targets = zip(*self._waiting, strict=True)
            self._waiting = []
            self._count(torch.cat(outputs), torch.cat(targets))

    def _sums(self) -> dict[str, Tensor]:
        self._count_waiting()
        return super()._sums()

    def _count(self, output: Tensor, target: Tensor) -> None:
        batch = _Batch.of(self.name, output, target, self.ignore_index)
        form = batch.form
        classes = form.scores.size(1) if form.is_scored else 1
        if self.topk > classes:
            raise ValueError(
                f"{self.name} got output {tuple(output.shape)} and target {tuple(target.shape)}: the {self.topk} most "
                f"likely of {classes if form.is_scored else 2} classes do not tell anything"
            )
        if form.is_scored:
            hits = batch.hits(self.topk)
        elif form.scores.is_floating_point():
            hits = (form.scores > self.threshold) == form.target
        else:
            hits = form.scores == form.target
        self.correct += (hits if form.counted is None else hits & form.counted).sum()
        self.samples += form.target.numel() if form.counted is None else form.counted.sum()
        self.outside += batch.outside

    def compute(self) -> Tensor:
        """The share over all batches; waits for the device, to see that all targets were classes."""
        self._count_waiting()
        if outside := int(self.outside):
            raise ValueError(
                f"{self.name}: {outside} targets were outside of the classes that the output has scores for: "
                "correct the targets, or pass ignore_index= when they mark samples to leave out"
            )
        return to_double(self.correct) / self.samples


class _Batch:
    """The last batch that somebody asked about, in one form and, if need be, ranked; shared by all Accuracy objects.

    A batch is known by its two tensors, weakly held, and the version that autograd gives a tensor whenever it is
    changed in place. What was made in inference mode has no version, and is not shared. A captured graph that writes
    outputs where it wrote those of the last batch gives them no new version; its target, which was copied in, has one.

    Attributes:
        form: output and target as :func:`class_inputs` gives them.
        outside: number of targets that are no class, 0-dim.
        ranks: how many classes come before the target's; None until somebody asks.
    """

    last: _Batch | None = None
    was_ranked = is_ranked = False
    """Whether somebody asked for the ranks of the batch before; of this one."""

    def __init__(self, form: Classes, output: Tensor, target: Tensor, ignore_index: int | None) -> None:
        self.form = form
        self.outside = form.outside.sum()
        self.ranks: Tensor | None = None
        self.ignore_index = ignore_index
        self.versions = _versions(output, target)
        self.tensors = [weakref.ref(one, _Batch.forget) for one in (output, target)]

    @classmethod
    def of(cls, name: str, output: Tensor, target: Tensor, ignore_index: int | None) -> _Batch:
        """The batch of these tensors: the last one, if they are the same and unchanged."""
        last = cls.last
        if last is None or not last.is_of(output, target, ignore_index):
            cls.last = last = cls(class_inputs(name, output, target, ignore_index), output, target, ignore_index)
            cls.was_ranked, cls.is_ranked = cls.is_ranked, False
        return last

    def is_of(self, output: Tensor, target: Tensor, ignore_index: int | None) -> bool:
        """It is of these tensors, and they are unchanged."""
        mine, its = self.tensors
        same = mine() is output and its() is target and self.ignore_index == ignore_index
        return same and None not in self.versions and self.versions == _versions(output, target)

    def hits(self, k: int) -> Tensor:
        """Whether the class is among the first k: bool, of the shape of the target."""
        _Batch.is_ranked |= k > 1
        # The best one alone is cheaper to find. But where the last batch had to be ranked, this one will have to be.
        if k == 1 and self.ranks is None and not _Batch.was_ranked:
            return self.form.scores.argmax(1) == self.form.target
        if self.ranks is None:
            self.ranks = _ranks(self.form.scores, self.form.target)
        return self.ranks < k

    @staticmethod
    def forget(_: Any) -> None:
        """Let go of the last batch, of which output or target is gone. A batch that has been replaced does not ask."""
        _Batch.last = None


def _kind(output: Any, target: Any) -> tuple[Any, ...] | None:
    """What makes two small batches alike; None of one that is not small."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or output.numel() > SMALL:
        return None
    return output.shape, output.dtype, output.device, target.shape, target.dtype, target.device


def _versions(*tensors: Tensor) -> list[int | None]:
    return [None if one.is_inference() else one._version for one in tensors]


def _ranks(scores: Tensor, classes: Tensor) -> Tensor:
    """Where in 0..C-1 each class stands. Not ``topk``: its choice among equal scores differs between devices."""
    classes = classes.unsqueeze(1)
    index = torch.arange(scores.size(1), dtype=torch.int32, device=scores.device).view(-1, *[1] * (scores.dim() - 2))
    own = scores.gather(1, classes)
    return ((scores > own) | ((scores == own) & (index < classes.int()))).sum(1, dtype=torch.int32)
