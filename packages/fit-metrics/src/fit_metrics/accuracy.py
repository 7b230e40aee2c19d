"""Provide top-k accuracy, and the accuracy of yes-or-no decisions."""

from __future__ import annotations

from typing import Any

import torch
from fit_core import at_least_one
from torch import Tensor

from .arguments import Task
from .base import SumMetric
from .classes import ClassMetric
from .dtypes import to_double

__all__ = ["Accuracy"]

SMALL = 4096
"""A batch with at most this many scores is small."""
TOGETHER = 16
"""How many small batches are counted together."""


class Accuracy(ClassMetric, SumMetric):
    """Compute the share of samples whose class is among the k most likely ones: `correct / samples`.

    It equals scikit-learn's `accuracy_score` and `top_k_accuracy_score`. Of equal scores the lower class index
    counts as the more likely, as in `argmax`, on every device. `Accuracy(1, 5)` ranks each batch once for both, and
    `compute` returns both by name.

    With `task="multilabel"` it is the share of labels that are predicted right, over all samples and labels, as in
    torchmetrics' `MultilabelAccuracy(average="micro")`, which is 1 minus scikit-learn's `hamming_loss`.
    `exact_match=True` makes it the share of samples whose labels are all right, scikit-learn's `accuracy_score`.

    Small batches are copied, and 16 of them are counted together, because counting a few samples takes as long as
    counting a few hundred.

    Args:
        topk: how many guesses a sample has, 1 or more.
        *more: further numbers of guesses. Each has a separate value.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        threshold: a single logit above it means class 1. 0 for logits, 0.5 for probabilities.
        ignore_index: a target that is not counted, such as -100 for padding or 255 for the border of a segmentation.
        exact_match: count the samples whose labels are all right, and not the labels. Needs `task="multilabel"`.
        name: the name in the logs. Without it `Acc@k`, or `Acc` for labels. With several k it is the part before
            the `@`, by default `Acc`.

    Shapes:
        * output `(N, C)`, `(N, C, ...)` or `(N, ..., C)`, floating scores. The target has class indices
          `(N, ...)` in 0..C-1, or one-hot or soft classes of the output's shape, whose largest entry is the class.
        * output `(N,)`, `(N, 1)` or `(N, 1, ...)`, floating, a single logit. The target has as many entries, 0 or
          1 or, if it is floating, between.
        * output `(N, ...)`, integer or bool, predicted classes. The target has the same shape.
        * with `task="multilabel"`, output `(N, C, ...)`, a logit for each label, or predicted labels, 0 or 1. The
          target has the same shape, 0 or 1 or, if it is floating, between.

    Value:
        0-dim, in 0..1, and nan without samples. With several k a dict of those.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: k is below 1 or above C, or the shapes do not fit or allow two readings. In `compute`: there
            were targets outside of 0..C-1, or rows that are neither one-hot nor soft.

    Examples:
        >>> accuracy = Accuracy(1, 2)
        >>> scores = torch.tensor([[0.1, 0.6, 0.3], [0.8, 0.0, 0.2]])
        >>> accuracy.update(scores, torch.tensor([1, 2]))
        >>> {name: float(value) for name, value in accuracy.compute().items()}
        {'Acc@1': 0.5, 'Acc@2': 1.0}
    """

    higher_is_better = True
    capturable = True
    correct: Tensor
    samples: Tensor
    outside: Tensor
    unclear: Tensor

    def __init__(
        self,
        topk: int = 1,
        *more: int,
        task: Task | None = None,
        class_dim: int | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        exact_match: bool = False,
        name: str | None = None,
    ) -> None:
        self.topk = topk
        self.more = more
        self._all_k = (topk, *more)
        if isinstance(topk, (tuple, list)):
            numbers = ", ".join(map(repr, topk))
            raise TypeError(f"expected topk to be a whole number, got {topk!r}. Write Accuracy({numbers})")
        for k in self._all_k:
            at_least_one(topk=k)
        if len(set(self._all_k)) < len(self._all_k):
            raise ValueError(f"expected each k once, got {self._all_k}")
        if exact_match and task != "multilabel":
            raise ValueError(f'expected task="multilabel" with exact_match=True, got {task!r}. Pass task="multilabel"')
        if task == "multilabel" and self._all_k != (1,):
            raise ValueError(f'expected topk=1 with task="multilabel", got {self._all_k}. Leave topk out')
        count = torch.long
        ClassMetric.__init__(self, None, task=task, class_dim=class_dim, ignore_index=ignore_index)
        SumMetric.__init__(
            self,
            self.default_name() if name is None else name,
            correct=(count, len(self._all_k)),
            samples=count,
            outside=count,
            unclear=count,
        )
        self.threshold = threshold
        self.exact_match = exact_match
        self._last_kind: tuple[Any, ...] | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @property
    def names(self) -> list[str]:
        """The names of the values."""
        return [f"{self.name}@{k}" for k in self._all_k] if self.more else [self.name]

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch, or keep a copy to count it with others. The class describes the shapes."""
        if _is_captured(output):
            self._count(output, target)  # Each replay of the graph counts its batch, and nothing waits.
            return
        kind = _kind(output, target)
        if kind is None or kind != self._last_kind:  # The first of its kind is counted now, so that errors show now.
            self._count_waiting()
            self._count(output, target)
            self._last_kind = kind
            return
        self._waiting.append((output.detach().clone(), target.detach().clone()))
        if len(self._waiting) == TOGETHER:
            self._count_waiting()

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the share over all batches, by name if there are several k. Waits for the device to check targets.

        Raises:
            ValueError: there were targets outside of the classes, or rows that are neither one-hot nor soft.
        """
        self._count_waiting()
        self.report(*torch.stack([self.outside, self.unclear]).tolist())
        shares = to_double(self.correct) / self.samples
        if not self.more:
            return shares[0]
        return dict(zip(self.names, shares, strict=True))

    def default_name(self) -> str:
        """Return `Acc@k`, or `Acc` for several k and for labels."""
        return "Acc" if self.more or self.task == "multilabel" else f"Acc@{self.topk}"

    def _count_waiting(self) -> None:
        if self._waiting:
            outputs, targets = zip(*self._waiting, strict=True)
            self._waiting = []
            self._count(torch.cat(outputs), torch.cat(targets))

    def _sums(self) -> dict[str, Tensor]:
        self._count_waiting()
        return super()._sums()

    def _count(self, output: Tensor, target: Tensor) -> None:
        batch = self.read_batch(output, target, needs_labels=self.exact_match)
        most, scores = max(self._all_k), batch.scores.size(1) if batch.has_class_scores else 1
        if most > scores:
            raise ValueError(
                f"{self.name}: top-{most} accuracy needs scores of {most} or more classes, got output "
                f"{tuple(output.shape)}. Leave topk out, or lower it"
            )
        is_counted = batch.is_counted
        if most == 1:
            is_right = batch.predicted(self.threshold) == batch.target
            if self.exact_match:
                is_right, is_counted = _all_labels(is_right, is_counted)
            correct = (is_right if is_counted is None else is_right & is_counted).sum()
            samples = is_right.numel()
        else:
            outdone = _outdone(batch.scores, batch.target)
            if is_counted is not None:
                outdone = outdone.masked_fill(~is_counted, 0)  # right for no k
            correct = torch.stack([(outdone > scores - k).sum() for k in self._all_k])
            samples = outdone.numel()
        self.correct += correct
        self.samples += samples if is_counted is None else is_counted.sum()
        self.outside += batch.is_outside.sum()
        if batch.is_unclear is not None:
            self.unclear += batch.is_unclear.sum()


def _kind(output: Any, target: Any) -> tuple[Any, ...] | None:
    """Return what small batches must have in common to be counted together, or None for a batch that is not small."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or output.numel() > SMALL:
        return None
    return output.shape, output.dtype, output.device, target.shape, target.dtype, target.device


def _is_captured(output: Any) -> bool:
    """Return whether a batch becomes part of a CUDA graph."""
    return isinstance(output, Tensor) and output.is_cuda and torch.cuda.is_current_stream_capturing()


def _all_labels(is_right: Tensor, is_counted: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return whether all labels of a sample that count are right, and whether it has any that count."""
    if is_counted is None:
        return is_right.all(1), None
    return (is_right | ~is_counted).all(1), is_counted.any(1)


def _outdone(scores: Tensor, classes: Tensor) -> Tensor:
    """Return how many classes are not more likely than the true one, itself included. int32 in 1..C, or 0 for nan.

    Not `topk`, because its choice among equal scores differs between devices. And not how many are more likely: none is
    above nan, so every guess of a model that returns nan would be right.
    """
    classes = classes.unsqueeze(1)
    index = torch.arange(scores.size(1), dtype=torch.int32, device=scores.device).view(-1, *[1] * (scores.dim() - 2))
    own = scores.gather(1, classes)
    return ((scores < own) | ((scores == own) & (index >= classes.int()))).sum(1, dtype=torch.int32)
