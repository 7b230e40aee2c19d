"""Check the arguments that several metrics have in common."""

from __future__ import annotations

from typing import Any, Literal, get_args

from fit_core import at_least_one

__all__ = ["Average", "Task", "check_average", "check_class_dim", "check_num_classes", "check_task"]

Task = Literal["binary", "multiclass", "multilabel"]
"""The meaning of an entry of the target: yes or no, a class, or yes or no for each label."""

Average = Literal["micro", "macro", "weighted"] | None
"""The way to average over classes. `"micro"` counts all samples of all classes together, `"macro"` is the mean over
classes, `"weighted"` the mean weighted by the samples of each class. None keeps the value of each class."""


def check_task(task: Any, num_classes: int | None = None) -> None:
    """Check that `task` is a `Task` or None, and agrees with the number of classes.

    Raises:
        ValueError: it does not.
    """
    known = get_args(Task)
    if task is not None and task not in known:
        raise ValueError(f"expected task to be one of {', '.join(map(repr, known))} or None, got {task!r}")
    if task == "binary" and num_classes not in (None, 2):
        raise ValueError(f'expected 2 classes with task="binary", got num_classes={num_classes}. Leave num_classes out')


def check_average(average: Any, num_classes: int | None) -> None:
    """Check that `average` is an `Average`, and that there are classes to average over.

    Raises:
        ValueError: it is not, or there are none.
    """
    known = (*get_args(get_args(Average)[0]), None)
    if average not in known:
        raise ValueError(f"expected average to be one of {', '.join(map(repr, known))}, got {average!r}")
    if num_classes is None and average != "macro":
        raise ValueError(f"expected num_classes with average={average!r}, got None. Pass num_classes=, 2 or more")


def check_num_classes(num_classes: Any, task: Task | None) -> None:
    """Check that `num_classes` is None or a whole number of 2 or more.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below 2, or is missing though the task needs it.
    """
    at_least_one(num_classes=num_classes)
    if num_classes == 1:
        raise ValueError("expected num_classes to be 2 or more, got 1. Leave it out for a single logit")
    if num_classes is None and task == "multilabel":
        raise ValueError('expected num_classes with task="multilabel", got None. Pass the number of labels')


def check_class_dim(class_dim: Any) -> None:
    """Check that `class_dim` is None or a dimension other than the first, which is that of samples.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is 0.
    """
    if class_dim is None:
        return
    if isinstance(class_dim, bool) or not isinstance(class_dim, int):
        raise TypeError(f"expected class_dim to be a whole number, got {class_dim!r}. Pass 1 or -1")
    if class_dim == 0:
        raise ValueError(
            "expected class_dim other than 0, the samples, got 0. Pass 1 for (N, C, ...) or -1 for (N, ..., C)"
        )
