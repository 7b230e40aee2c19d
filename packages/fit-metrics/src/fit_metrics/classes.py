"""Bring the outputs and targets of a classification to one form."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Task, check_class_dim, check_task
from .base import BaseMetric
from .inputs import check_tensors
from .layout import Expected, Layout, align, find_layout, shapes

__all__ = ["ClassBatch", "ClassMetric"]


class ClassBatch(NamedTuple):
    """A batch of scores and true classes.

    Attributes:
        task: what the targets are.
        scores: floating `(N, C, ...)`, scores of classes or labels. Floating `(N, ...)`, single logits. int64
            `(N, ...)`, predicted classes, or `(N, C, ...)`, predicted labels.
        target: int64 `(N, ...)` in 0..C-1, or `(N, C, ...)`, 0 or 1 for each label.
        is_counted: bool, of the target's shape: the target is not `ignore_index`. None if all are counted.
        is_outside: bool, of the target's shape: the target, or the predicted class, is not one of the classes.
        is_unclear: bool, of the target's shape: the target came as a row that is neither one-hot nor soft. None if
            the targets did not come in rows, or the user said how to read them.
    """

    task: Task
    scores: Tensor
    target: Tensor
    is_counted: Tensor | None
    is_outside: Tensor
    is_unclear: Tensor | None

    @property
    def has_class_scores(self) -> bool:
        """Whether the scores have a dimension of classes, of which one is right."""
        return self.scores.dim() > self.target.dim()

    def predicted(self, threshold: float) -> Tensor:
        """Return the predicted classes or labels, of the target's shape. Bool or int64."""
        if self.has_class_scores:
            return self.scores.max(1).indices  # the same as argmax, in a third of the time on a CPU
        return self.scores > threshold if self.scores.is_floating_point() else self.scores


class ClassMetric(BaseMetric):
    """Base of classification metrics: read batches with targets of any form.

    Args:
        classes: C, the number of classes or labels. None for any number.
        task: what the targets are. None to infer it.
        class_dim: the dimension of the output with the classes. None to infer it.
        ignore_index: a target that is not counted.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self, classes: int | None, *, task: Task | None, class_dim: int | None, ignore_index: int | None
    ) -> None:
        check_task(task, classes)
        check_class_dim(class_dim)
        self.task = task
        self.class_dim = class_dim
        self.ignore_index = ignore_index
        self._classes = classes
        self._usual_dim: int | None = None

    def read_batch(self, output: Any, target: Any, *, needs_labels: bool = True) -> ClassBatch:
        """Bring a batch to one form, without its graph, and without waiting for the device.

        Args:
            output: floating `(N, C, ...)` or `(N, ..., C)`: scores. Floating `(N, ...)`: single logits. Integer
                or bool, of the target's shape: predicted classes or labels.
            target: class indices, one-hot or soft classes, or labels.
            needs_labels: whether the metric has to know the dimension of the labels.

        Raises:
            TypeError: one is not a tensor, or has the wrong dtype.
            ValueError: the shapes do not fit, or allow two readings.
        """
        check_tensors(self.name, output, target)
        output, target = output.detach(), target.detach()
        expected = Expected(self.name, self.task, self._classes, self.class_dim, self._usual_dim, needs_labels)
        layout = find_layout(output, target, expected)
        if layout.class_dim is None or layout.task == "multilabel":
            return self._read_entries(layout, output, target)
        if output.dim() > 2:
            self._usual_dim = 1 if layout.class_dim == 1 else -1
        return self._read_scores(layout.class_dim, output, target)

    def _read_scores(self, dim: int, output: Tensor, target: Tensor) -> ClassBatch:
        """Read scores of classes, and class indices or rows of one-hot or soft classes."""
        scores, is_unclear = output if dim == 1 else output.movedim(dim, 1), None
        if target.shape == output.shape:
            target = (target.byte() if target.dtype == torch.bool else target).movedim(dim, 1)
            if self.task is None:
                # Multi-hot rows have the same shape and dtype. Only their sum differs from that of one-hot and soft
                # rows. The tolerance is for soft targets in half precision.
                is_unclear = ~((target.sum(1, dtype=torch.float32) - 1).abs() < 0.01)
            target = target.max(1).indices
        elif target.is_floating_point():
            raise TypeError(self._floating_indices(output, target))
        elif target.dim() == output.dim():
            target = target.squeeze(dim)
        return self._mark("multiclass", scores, target, scores.size(1), is_unclear)

    def _read_entries(self, layout: Layout, output: Tensor, target: Tensor) -> ClassBatch:
        """Read logits or predictions that stand for themselves, and a target for each."""
        if layout.class_dim is not None:
            output, target = output.movedim(layout.class_dim, 1), target.movedim(layout.class_dim, 1)
        pair = align(output, target)
        assert pair is not None  # find_layout has checked it.
        scores, target = pair
        if layout.task == "binary" and self._classes not in (None, 2):
            raise ValueError(
                f"{self.name} expected scores of {self._classes} classes, got a single logit for each target: "
                f"{shapes(output, target)}. Leave num_classes out, or return (N, {self._classes}) from the model"
            )
        is_yes_or_no = layout.task != "multiclass" or (output.dtype == torch.bool and self._classes is None)
        classes = 2 if is_yes_or_no else self._classes
        if target.is_floating_point() and classes != 2:
            raise TypeError(self._floating_indices(output, target))
        return self._mark(layout.task, scores if scores.is_floating_point() else scores.long(), target, classes, None)

    def _mark(
        self, task: Task, scores: Tensor, target: Tensor, classes: int | None, is_unclear: Tensor | None
    ) -> ClassBatch:
        """Mark the targets that are not counted, and those that are not one of the classes."""
        target = target if target.is_floating_point() else target.long()
        is_counted = None if self.ignore_index is None else target != self.ignore_index
        inside = target.clamp(0, None if classes is None else classes - 1)
        is_outside = inside != target
        if classes is not None and not scores.is_floating_point():
            predicted = scores.clamp(0, classes - 1)
            is_outside |= predicted != scores
            scores = predicted
        if is_counted is not None:
            is_outside &= is_counted
            is_unclear = None if is_unclear is None else is_unclear & is_counted
        target = (inside > 0.5).long() if inside.is_floating_point() else inside
        return ClassBatch(task, scores, target, is_counted, is_outside, is_unclear)

    def _floating_indices(self, output: Tensor, target: Tensor) -> str:
        return (
            f"{self.name} expected class indices of an integer dtype, got {target.dtype}: {shapes(output, target)}. "
            "Pass target.long()"
        )

    def report(self, outside: int, unclear: int, classes: int | None = None) -> None:
        """Raise an error for invalid targets, which were counted separately.

        Args:
            outside: how many targets or predictions were not one of the classes.
            unclear: how many rows of the targets were neither one-hot nor soft.
            classes: the number of classes, if it is known.

        Raises:
            ValueError: there were some.
        """
        if unclear:
            raise ValueError(
                f"{self.name} expected one-hot or soft targets, whose rows add up to 1, got {unclear} other rows. "
                'Pass task="multilabel" if a sample may have several labels or none, task="multiclass" to take the '
                'largest entry of a row as its class, or task="binary" if every entry of the output is a single logit'
            )
        if outside:
            where = "among the classes of the output" if classes is None else f"in 0..{classes - 1}"
            raise ValueError(
                f"{self.name} expected targets and predicted classes {where}, got {outside} outside. "
                "Correct them, or pass ignore_index= if they mark targets to leave out"
            )
