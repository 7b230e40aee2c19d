"""Measure how well scores rank samples, over all thresholds."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from fit_core import has_process_group
from torch import Tensor

from .arguments import Average, Task, check_average, check_num_classes
from .classes import ClassMetric
from .dtypes import to_double
from .inputs import check_tensors
from .processes import gather_rows

__all__ = ["RankingMetric"]

Self = TypeVar("Self", bound="RankingMetric")

IGNORED, OUTSIDE, UNCLEAR = -1, -2, -3
"""These replace targets that are not counted, that are not a class, and that came in an unclear row."""


class RankingMetric(ClassMetric):
    """Base of exact metrics over the order of scores. A subclass defines `score`.

    Such a metric is not a sum. It keeps every score on the device until `reset`: N * (C + 1) numbers, or 2 N of two
    classes. `compute` sorts them. With several processes each gets the scores of all.

    Args:
        name: the name in the logs.
        num_classes: C, the number of classes or labels, 2 or more, each of which is ranked against the rest. None for
            class 1 of two.
        average: `"macro"` is the mean over all classes. `"weighted"` is the mean weighted by the number of targets,
            over the classes that have any. `"micro"` is one ranking of all scores of all classes. None is the value
            of each class, which a Runner does not log.
        task: `"binary"`, `"multiclass"` or `"multilabel"`. None infers binary or multiclass from the shapes.
        class_dim: the dimension of the output with the classes, such as -1 for `(N, T, C)`. None infers it.
        ignore_index: a target that is not counted, such as -100 for padding or 255 for the border of a segmentation.

    Shapes:
        * output `(N, C)`, `(N, C, ...)` or `(N, ..., C)`, floating: probabilities, if all are in 0..1 and those
          of a sample add up to 1, and otherwise logits, which a softmax turns into probabilities. The target has class
          indices `(N, ...)` in 0..C-1, or one-hot or soft classes of the output's shape, whose largest entry is the
          class.
        * without num_classes, output `(N,)`, `(N, 1)` or `(N, 1, ...)`, floating, a logit or probability of
          class 1, or `(N, 2)`, two logits. The target has 0 or 1 for each.
        * with `task="multilabel"`, output `(N, C, ...)`, floating, a logit or probability for each label. The
          target has the same shape, 0 or 1 or, if it is floating, between.

    Value:
        0-dim, in 0..1, or `(C,)` with `average=None`. nan without samples, or if a score was nan.

    Raises:
        TypeError: an argument, output or target has the wrong type or dtype.
        ValueError: the shapes do not fit or allow two readings, or an argument is out of range. In `compute`: there
            were targets outside of 0..C-1, or rows that are neither one-hot nor soft.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None,
        average: Average,
        *,
        task: Task | None = None,
        class_dim: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        check_num_classes(num_classes, task)
        check_average(average, num_classes)
        super().__init__(
            2 if num_classes is None else num_classes, task=task, class_dim=class_dim, ignore_index=ignore_index
        )
        self.name = name
        self.num_classes = num_classes
        self.average = average
        self._device = torch.device("cpu")
        self.reset()

    @abstractmethod
    def score(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the value of one class, 0-dim.

        Args:
            positives: scores of its samples, in ascending order.
            negatives: scores of the other samples, in ascending order.
        """

    def reset(self) -> None:
        """Forget all batches."""
        columns = () if self.num_classes is None else (self.num_classes,)
        self._scores = [torch.empty(0, *columns, device=self._device)]
        is_labels = self.task == "multilabel"
        self._targets = [
            torch.empty(0, *columns, dtype=torch.int8, device=self._device)
            if is_labels
            else torch.empty(0, dtype=torch.int32, device=self._device)
        ]

    def update(self, output: Tensor, target: Tensor) -> None:
        """Keep the scores of a batch. The class describes the shapes."""
        check_tensors(self.name, output, target)
        if not output.is_floating_point():
            raise TypeError(f"{self.name} expected floating scores, got an output of {output.dtype}. Pass the logits")
        batch = self.read_batch(output, target)
        scores, target = batch.scores, batch.target.masked_fill(batch.is_outside, OUTSIDE)
        if batch.is_unclear is not None:
            target = target.masked_fill(batch.is_unclear, UNCLEAR)
        if batch.is_counted is not None:
            target = target.masked_fill(~batch.is_counted, IGNORED)
        if batch.task == "multilabel":
            scores, target = (value.movedim(1, -1).reshape(-1, value.size(1)) for value in (scores, target))
        elif self.num_classes is None:
            scores, target = _of_class_1(scores) if batch.has_class_scores else scores, target.flatten()
            scores = scores.flatten()
        elif batch.has_class_scores:
            scores, target = scores.movedim(1, -1).reshape(-1, self.num_classes), target.flatten()
        else:
            raise ValueError(
                f"{self.name}(num_classes={self.num_classes}) expected scores of {self.num_classes} classes, got a "
                f"single logit for each target: output {tuple(output.shape)}. Leave num_classes out"
            )
        # A copy, because what a compiled model returned may be overwritten by its next call.
        self._scores.append(scores.clone())
        self._targets.append(target.to(self._targets[0].dtype))

    def compute(self) -> Tensor:
        """Return the value over all batches. Waits for the device.

        Raises:
            ValueError: there were targets outside of the classes, or rows that are neither one-hot nor soft.
        """
        scores, targets = torch.cat(self._scores), torch.cat(self._targets)
        outside, unclear = torch.stack([(targets == OUTSIDE).sum(), (targets == UNCLEAR).sum()]).tolist()
        self.report(outside, unclear, 2 if self.task == "multilabel" else self.num_classes or 2)
        is_counted, scores = targets != IGNORED, to_double(scores)
        if self.num_classes is None:
            return self._value(scores, targets == 1, is_counted)
        if self.task == "multilabel":
            is_positive = targets == 1
        else:
            scores, targets = scores[is_counted], targets[is_counted]
            scores = scores if _are_probabilities(scores) else scores.softmax(1)
            is_positive = targets.unsqueeze(1) == torch.arange(self.num_classes, device=targets.device)
            is_counted = torch.ones_like(is_positive)
        if self.average == "micro":
            return self._value(scores, is_positive, is_counted)
        columns = zip(scores.unbind(1), is_positive.unbind(1), is_counted.unbind(1), strict=True)
        values = torch.stack([self._value(*column) for column in columns])
        if self.average == "macro":
            return values.mean()
        if self.average == "weighted":
            samples = is_positive.sum(0)
            weighted = torch.where(samples > 0, values * samples, 0).sum() / samples.sum()
            return torch.where(samples.sum() > 0, weighted, values.mean())
        return values

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the scores to `device`."""
        self._device = torch.device(device)
        self._scores = [scores.to(self._device) for scores in self._scores]
        self._targets = [targets.to(self._device) for targets in self._targets]
        return self

    def all_reduce(self) -> None:
        """Gather the scores of all processes. Every process calls it once, before `compute`.

        A process may have any number of samples, or none. Does nothing without a process group.
        """
        if has_process_group():
            self._scores = [gather_rows(to_double(torch.cat(self._scores)))]
            self._targets = [gather_rows(torch.cat(self._targets))]

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the scores and targets."""
        return {"scores": torch.cat(self._scores), "targets": torch.cat(self._targets)}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the scores and targets that `state_dict` returned, on any device.

        Raises:
            ValueError: the state belongs to another metric, or has another number of classes. Nothing is changed then.
        """
        expected = {"scores": self._scores[0].shape[1:], "targets": self._targets[0].shape[1:]}
        saved = {name: value.shape[1:] for name, value in state_dict.items()}
        if saved != expected:
            raise ValueError(
                f"expected a state of {self.name} with the columns {expected}, got {saved}. "
                "Create the metric with the arguments that it had when the state was saved"
            )
        self._scores = [state_dict["scores"].to(self._device)]
        self._targets = [state_dict["targets"].to(self._device)]

    def _value(self, scores: Tensor, is_positive: Tensor, is_counted: Tensor) -> Tensor:
        """Return the score of one ranking, and nan without samples or with a score that is nan."""
        positives, negatives = scores[is_positive & is_counted], scores[~is_positive & is_counted]
        if not len(positives) + len(negatives) or positives.isnan().any() or negatives.isnan().any():
            return scores.new_full((), torch.nan)
        return self.score(positives.sort().values, negatives.sort().values)


def _of_class_1(scores: Tensor) -> Tensor:
    """Return one score from two logits `(N, 2, ...)`, in double so that small differences keep their order."""
    return to_double(scores[:, 1]) - to_double(scores[:, 0])


def _are_probabilities(scores: Tensor) -> bool:
    """Return whether scores `(N, C)` look like a softmax. The tolerance is for sums in bf16."""
    return bool(((scores >= 0) & (scores <= 1)).all() & ((scores.sum(1) - 1).abs() < 0.01).all())
