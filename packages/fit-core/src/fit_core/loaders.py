"""Find out the length of a loader, why it is empty, and where an epoch ends."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from .workers import open_loader

__all__ = ["batches", "has_estimated_length", "length", "warn_longer", "why_empty"]


def length(loader: Iterable[Any], at_most: int | None = None) -> int | None:
    """Return ``len(loader)``, or ``at_most`` if that is less, or None if neither is known."""
    try:
        size = len(loader)  # type: ignore[arg-type]  # TypeError says that it has no len
    except TypeError:
        return at_most
    return size if at_most is None else min(size, at_most)


def has_estimated_length(loader: Any) -> bool:
    """Return whether the loader's ``len`` is only an estimate of an iterable dataset."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def batches(loader: Iterable[Any], steps: int | None, name: str) -> Iterator[Any]:
    """Yield the batches of one pass: at most ``steps``, and at most ``len(loader)`` where it has one."""
    if steps is not None:
        yield from islice(open_loader(loader), steps)
        return
    size, iterator = length(loader), open_loader(loader)
    yield from islice(iterator, size)
    if size is not None and next(iterator, iterator) is not iterator:
        warn_longer(name, size)


def warn_longer(name: str, size: int) -> None:
    """Warn that a loader yields more batches than its ``len``."""
    warnings.warn(
        f"len({name}) is {size}, but it yields more batches. The pass ends after {size}. Correct its __len__, or pass "
        "the number of batches to use as steps_per_epoch (val_steps or steps in evaluation)",
        stacklevel=3,
    )


def why_empty(loader: Any, name: str) -> str:
    """Explain why a loader yields no batches, with the sizes that matter."""
    samples = length(getattr(loader, "dataset", ()))
    size = getattr(loader, "batch_size", None)
    if samples and size and getattr(loader, "drop_last", False):
        return (
            f"{name} yields no batches: its {samples} samples do not fill one batch of {size}, and drop_last=True "
            "drops them. Use a smaller batch_size or drop_last=False"
        )
    if isinstance(loader, Iterator):
        return (
            f"{name} is a {type(loader).__name__}, which can be read only once and has ended. "
            "Pass a list, a DataLoader, or an object whose __iter__ starts from scratch"
        )
    return f"{name} ({type(loader).__name__}) yields no batches: its dataset is empty"
