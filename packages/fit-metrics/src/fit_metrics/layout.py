"""Infer from shapes and dtypes how to read a classification batch. Raise an error if there are two ways."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Task

__all__ = ["Expected", "Layout", "align", "find_layout", "shapes"]


class Expected(NamedTuple):
    """Describe what is known about the batches of a metric.

    Attributes:
        metric: its name, for messages.
        task: what the user said that the targets are.
        num_classes: C, the number of classes or labels. None for any number.
        class_dim: the dimension of the classes in the output, if the user has passed it.
        usual_dim: the dimension of the classes in an earlier batch, 1 or -1.
        needs_labels: whether the metric has to know the dimension of the labels.
    """

    metric: str
    task: Task | None
    num_classes: int | None
    class_dim: int | None
    usual_dim: int | None
    needs_labels: bool


class Layout(NamedTuple):
    """Describe how to read a batch.

    Attributes:
        task: what the targets are.
        class_dim: the dimension of the output with a score for each class or label. None if each entry of the output
            is a decision or a predicted class.
    """

    task: Task
    class_dim: int | None


def find_layout(output: Tensor, target: Tensor, expected: Expected) -> Layout:
    """Decide how to read a batch.

    A target of the output's shape without one dimension has class indices, and that dimension has the classes. A target
    of the output's shape has one-hot or soft classes, which the reader has to verify by value.

    Raises:
        ValueError: no reading fits the shapes, or two do. The message says which argument decides.
    """
    dims = _candidate_dims(output, target, expected)
    if expected.task == "multilabel":
        return _labels(output, target, dims, expected)
    if output.is_floating_point() and expected.task != "binary":
        fitting = [dim for dim in dims if _has_indices(output, target, dim)]
        if not fitting and output.shape == target.shape and not _has_single_logits(output, expected):
            fitting = [dim for dim in dims if output.size(dim) > 1]
        if fitting:
            return _choose(fitting, output, target, expected)
    has_entries = align(output, target) is not None
    if output.is_floating_point():
        is_single = expected.task == "binary" or output.dim() == 1 or 1 in (output.size(1), output.size(-1))
        if has_entries and is_single and expected.task != "multiclass":
            return Layout("binary", None)
        raise ValueError(_unfitting(output, target, dims, expected))
    if not has_entries:
        raise ValueError(_unfitting(output, target, [], expected))
    if expected.task is None and any(output.size(dim) == expected.num_classes for dim in dims):
        raise ValueError(
            f"{expected.metric} expected either predicted labels or predicted classes, got {shapes(output, target)} "
            f'and {expected.num_classes} classes, which could be both. Pass task="multilabel" if the entries are yes '
            'or no for each label, or task="multiclass" if they are classes'
        )
    return Layout("binary" if expected.task == "binary" else "multiclass", None)


def align(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return output and target with equal shapes, without a dimension of size 1 that one has more. None if they differ.

    Args:
        output: `(N, ...)`, `(N, 1, ...)` or `(N, ..., 1)`.
        target: likewise.
    """
    if output.shape == target.shape:
        return output, target
    for dim in (1, -1):
        if _is_column(output, dim) and _drop(output.shape, dim) == target.shape:
            return output.squeeze(dim), target
        if _is_column(target, dim) and _drop(target.shape, dim) == output.shape:
            return output, target.squeeze(dim)
    return None


def shapes(output: Tensor, target: Tensor) -> str:
    """Return the shapes of a batch, for messages."""
    return f"output {tuple(output.shape)} and target {tuple(target.shape)}"


def _candidate_dims(output: Tensor, target: Tensor, expected: Expected) -> list[int]:
    """Return the dimensions that may be the classes."""
    if not output.dim():
        raise ValueError(
            f"{expected.metric} expected an output with a dimension of samples, got {shapes(output, target)}. "
            "Pass output[None] and target[None] for a single sample"
        )
    if expected.class_dim is None or output.dim() == 1:
        return [1, output.dim() - 1][: output.dim() - 1]
    dim = expected.class_dim + output.dim() * (expected.class_dim < 0)
    if not 0 < dim < output.dim():
        raise ValueError(
            f"{expected.metric} has class_dim={expected.class_dim}, got {shapes(output, target)}. "
            f"Pass a dimension in 1..{output.dim() - 1}"
        )
    return [dim]


def _has_indices(output: Tensor, target: Tensor, dim: int) -> bool:
    """Return whether the target has the shape of class indices if the classes are in `dim`."""
    is_kept = target.dim() == output.dim() and target.size(dim) == 1
    return output.size(dim) > 1 and _drop(output.shape, dim) == (_drop(target.shape, dim) if is_kept else target.shape)


def _drop(shape: torch.Size, dim: int) -> torch.Size:
    """Return a shape without one dimension."""
    dim %= len(shape)
    return torch.Size((*shape[:dim], *shape[dim + 1 :]))


def _is_column(value: Tensor, dim: int) -> bool:
    """Return whether there is a dimension of size 1 that may be dropped."""
    return value.dim() > 1 and value.size(dim) == 1


def _has_single_logits(output: Tensor, expected: Expected) -> bool:
    """Return whether an output `(N, 1, ...)` has a logit of class 1 for each entry of a target of its shape."""
    is_other = expected.task is not None or expected.class_dim is not None or expected.usual_dim == -1
    return not is_other and expected.num_classes in (None, 2) and output.dim() > 1 and output.size(1) == 1


def _choose(fitting: list[int], output: Tensor, target: Tensor, expected: Expected) -> Layout:
    """Choose the dimension of classes among those that fit the shapes."""
    if len(fitting) > 1 and expected.num_classes is not None:
        fitting = [dim for dim in fitting if output.size(dim) == expected.num_classes] or fitting[:1]
    if len(fitting) > 1 and expected.usual_dim is not None:
        fitting = [expected.usual_dim % output.dim()]
    if len(fitting) > 1:
        raise ValueError(_ask_for_class_dim(output, target, expected))
    (dim,) = fitting
    if expected.num_classes not in (None, output.size(dim)):
        raise ValueError(_other_number(output, target, output.size(dim), expected))
    return Layout("multiclass", dim)


def _labels(output: Tensor, target: Tensor, dims: list[int], expected: Expected) -> Layout:
    """Choose the dimension of labels. None if it is unclear, and nobody needs it."""
    if output.shape != target.shape or not dims:
        raise ValueError(
            f'{expected.metric} has task="multilabel" and expected output and target of one shape (N, C, ...), with '
            f"an entry for each label, got {shapes(output, target)}. "
            'Pass targets of 0 and 1 for each label, or task="multiclass" for class indices'
        )
    fitting = list(dict.fromkeys(dims))
    if len(fitting) > 1 and expected.num_classes is not None:
        fitting = [dim for dim in fitting if output.size(dim) == expected.num_classes] or fitting[:1]
    if len(fitting) > 1:
        if expected.needs_labels:
            raise ValueError(_ask_for_class_dim(output, target, expected))
        return Layout("multilabel", None)
    (dim,) = fitting
    if expected.num_classes not in (None, output.size(dim)):
        raise ValueError(_other_number(output, target, output.size(dim), expected))
    return Layout("multilabel", dim)


def _ask_for_class_dim(output: Tensor, target: Tensor, expected: Expected) -> str:
    return (
        f"{expected.metric} expected one dimension of the output that can be the classes, got several: "
        f"{shapes(output, target)}. Pass class_dim=1 for (N, C, ...) or class_dim=-1 for (N, ..., C)"
    )


def _other_number(output: Tensor, target: Tensor, size: int, expected: Expected) -> str:
    advice = f"Pass num_classes={size}"
    if output.shape == target.shape and expected.task is None:
        advice += ', with task="multilabel" if a sample may have several labels'
    return f"{expected.metric} expected {expected.num_classes} classes, got {shapes(output, target)}. {advice}"


def _unfitting(output: Tensor, target: Tensor, dims: list[int], expected: Expected) -> str:
    """Return the message for a target that fits no reading of the output."""
    if expected.task == "multiclass" and output.is_floating_point() and align(output, target) is not None:
        return (
            f'{expected.metric} has task="multiclass" and expected scores of 2 or more classes, got '
            f'{shapes(output, target)}. Pass task="binary" for single logits'
        )
    of_indices = dict.fromkeys(str(tuple(_drop(output.shape, dim))) for dim in dims if output.size(dim) > 1)
    if expected.task == "binary" or not of_indices:
        wanted, advice = f"a target of shape {tuple(output.shape)}", "Return one output for each target from the model"
    else:
        wanted = f"class indices of shape {' or '.join(of_indices)}, or one-hot classes of shape {tuple(output.shape)}"
        advice = "Return one output for each target from the model"
        if output.dim() > 2:
            advice = "Pass class_dim= if another dimension of the output is that of the classes"
    return f"{expected.metric} expected {wanted}, got {shapes(output, target)}. {advice}"
