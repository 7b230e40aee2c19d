"""Outputs and targets as people have them, brought to one form; what does not fit is refused here."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from fit_core import at_least_one
from torch import Tensor

__all__ = ["Average", "Classes", "check_average", "check_classes", "check_tensors", "class_inputs", "number_inputs"]

WIDE = {torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64}

Average = Literal["micro", "macro", "weighted"] | None
"""How the values of classes become one: of all samples together; their mean; their mean weighted by the classes'
samples; or not at all."""


class Classes(NamedTuple):
    """A batch of scores and classes.

    Attributes:
        scores: floating ``(N, C, ...)``: scores of C classes, 2 or more; floating ``(N, ...)``: a single logit;
            int64 ``(N, ...)``: predicted classes.
        target: int64 ``(N, ...)``, each in ``0..C-1``.
        counted: bool ``(N, ...)``: not ``ignore_index``; None when all are counted.
        outside: bool ``(N, ...)``: target, or predicted class, is none of the classes, and stands for another here.
    """

    scores: Tensor
    target: Tensor
    counted: Tensor | None
    outside: Tensor

    @property
    def is_scored(self) -> bool:
        """There is a score for each class."""
        return self.scores.dim() > self.target.dim()


def check_tensors(metric: str, output: Any, target: Any) -> None:
    """Check that output and target are tensors of real numbers.

    Raises:
        TypeError: one is not.
    """
    for name, value in (("output", output), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{metric} expected the {name} to be a tensor, got {type(value).__name__}. Pick the tensor in a "
                "subclass: def update(self, output, target): super().update(output['logits'], target)"
            )
        if value.is_complex():
            raise TypeError(f"{metric} expected the {name} to be real, got {value.dtype}. Pass {name}.abs() or .real")


def class_inputs(
    metric: str, output: Any, target: Any, ignore_index: int | None = None, num_classes: int | None = None
) -> Classes:
    """Bring a batch of a classification to one form, without its graph, and without waiting for the device.

    Args:
        metric: its name, for messages.
        output: floating ``(N, C)`` or ``(N, C, ...)``: scores; floating ``(N,)``, ``(N, 1)`` or ``(N, 1, ...)``: a
            single logit; integer ``(N, ...)``: predicted classes.
        target: class indices ``(N,)``, ``(N, 1)`` or ``(N, ...)``; one-hot or soft ``(N, C)``. Of single logits it may
            be floating, in 0..1.
        ignore_index: the target that is not counted.
        num_classes: C where it is known; then one-hot targets may also be ``(N, C, ...)``.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: shapes that do not fit.
    """
    check_tensors(metric, output, target)
    given = output.shape, target.shape
    output, target = output.detach(), target.detach()
    has_scores = output.is_floating_point() and output.dim() > 1 and output.size(1) > 1
    if output.dim() > 1 and output.size(1) == 1:
        output = output.squeeze(1)
    of_class = output.shape[:1] + output.shape[2:] if has_scores else output.shape
    classes = output.size(1) if has_scores else 2 if output.is_floating_point() else num_classes
    if num_classes not in (None, classes):
        raise ValueError(
            f"{_got(metric, given)}: there are scores of {classes} classes, and the metric is made for {num_classes}"
        )
    if has_scores and target.shape == output.shape and (output.dim() == 2 or num_classes):
        target = (target.byte() if target.dtype == torch.bool else target).argmax(1)
    elif target.dim() == len(of_class) + 1 and target.size(1) == 1:
        target = target.squeeze(1)
    if target.shape != of_class or not output.dim():
        expected = f"class indices of shape {tuple(of_class)}" + (" or, one-hot, (N, C)" if has_scores else "")
        raise ValueError(
            f"{_got(metric, given)}: expected a target of {expected}; a single logit per pixel is (N, 1, ...)"
        )
    if has_scores and target.is_floating_point():
        raise TypeError(
            f"{_got(metric, given)}: class indices must be integers, not {target.dtype}: pass target.long()"
        )
    if not target.is_floating_point():
        target = target.long()
    counted = None if ignore_index is None else target != ignore_index
    if not output.is_floating_point():
        output = output.long()
    if classes is None:  # Predicted classes, and nobody knows how many there are.
        return Classes(output, target, counted, torch.zeros_like(target, dtype=torch.bool))
    inside = target.clamp(0, classes - 1)
    outside = inside != target
    if not output.is_floating_point():
        predicted = output.clamp(0, classes - 1)
        outside |= predicted != output
        output = predicted
    if counted is not None:
        outside &= counted
    return Classes(output, (inside > 0.5).long() if inside.is_floating_point() else inside, counted, outside)


def number_inputs(metric: str, output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return output and target without their graph, in one shape and in a floating dtype that holds both.

    Args:
        metric: its name, for messages.
        output: any shape, any real dtype.
        target: the same shape. ``(N, 1)`` and ``(N,)`` are the same.

    Raises:
        TypeError: one is not a tensor, or is complex.
        ValueError: the shapes differ. They are not broadcast, because ``(N, 1)`` minus ``(N,)`` would be ``(N, N)``.
    """
    check_tensors(metric, output, target)
    if {output.dim(), target.dim()} == {1, 2}:
        flat_output, flat_target = without_column(output), without_column(target)
    else:
        flat_output, flat_target = output, target
    if flat_output.shape != flat_target.shape:
        raise ValueError(
            f"{metric} expected output and target of one shape, got output {tuple(output.shape)} and target "
            f"{tuple(target.shape)}. Return one output for each target from the model"
        )
    is_wide = output.dtype in WIDE or target.dtype in WIDE
    dtype = torch.float64 if is_wide and output.device.type != "mps" else torch.float32
    return flat_output.detach().to(dtype), flat_target.detach().to(dtype)


def without_column(value: Tensor) -> Tensor:
    """Return ``(N, 1)`` as ``(N,)``, and any other tensor as it is."""
    return value.squeeze(1) if value.dim() == 2 and value.size(1) == 1 else value


def check_average(average: Any, num_classes: int | None) -> None:
    """``average`` is one there is, and is over several classes.

    Raises:
        ValueError: it is not.
    """
    known = (*get_args(get_args(Average)[0]), None)
    if average not in known:
        raise ValueError(f"average must be one of {', '.join(map(repr, known))}, got {average!r}")
    if num_classes is None and average != "macro":
        raise ValueError(f"average={average!r} is over classes: say how many there are, num_classes=2 or more")


def check_classes(num_classes: Any) -> None:
    """``num_classes`` is a number of classes, or None.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below 2.
    """
    at_least_one(num_classes=num_classes)
    if num_classes == 1:
        raise ValueError("expected num_classes to be 2 or more, got 1. Leave it out for a single logit")


def _got(metric: str, shapes: tuple[torch.Size, torch.Size]) -> str:
    """The beginning of a message: what came."""
    return f"{metric} got output {tuple(shapes[0])} and target {tuple(shapes[1])}"
