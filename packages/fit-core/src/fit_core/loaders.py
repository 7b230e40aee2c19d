"""Find out the length, the batch size and the samplers of a loader, why it is empty, and where an epoch ends."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from .workers import open_loader

__all__ = [
    "batch_size",
    "batches",
    "has_estimated_length",
    "length",
    "samplers",
    "warn_longer",
    "warn_shuffled",
    "why_empty",
]

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def length(loader: Iterable[Any], at_most: int | None = None) -> int | None:
    """Return `len(loader)`, or `at_most` if that is less, or None if neither is known."""
    try:
        size = len(loader)  # type: ignore[arg-type]  # TypeError says that it has no len
    except TypeError:
        return at_most
    return size if at_most is None else min(size, at_most)


def samplers(loader: Any) -> list[Any]:
    """Return the samplers of a loader, and those inside of them, such as the RandomSampler of a BatchSampler.

    Args:
        loader: a loader, or a sampler that may have others inside.
    """
    found: list[Any] = []
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        while sampler is not None and not any(sampler is other for other in found):
            found.append(sampler)
            sampler = getattr(sampler, "sampler", None)
    return found


def batch_size(loader: Any) -> int | None:
    """Return the batch size of a loader or of its BatchSampler, None if neither has one."""
    sizes = (getattr(holder, "batch_size", None) for holder in (loader, *samplers(loader)))
    return next((size for size in sizes if isinstance(size, int)), None)


def has_estimated_length(loader: Any) -> bool:
    """Return whether the loader's `len` is only an estimate of an iterable dataset."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def batches(loader: Iterable[Any], steps: int | None, name: str) -> Iterator[Any]:
    """Yield the batches of one pass: at most `steps`, and at most `len(loader)` where it has one."""
    if steps is not None:
        yield from islice(open_loader(loader), steps)
        return
    size, iterator = length(loader), open_loader(loader)
    yield from islice(iterator, size)
    if size is not None and next(iterator, iterator) is not iterator:
        warn_longer(name, size)


def warn_longer(name: str, size: int) -> None:
    """Warn that a loader yields more batches than its `len`."""
    warnings.warn(
        f"len({name}) is {size}, but it yields more batches. The pass ends after {size}. Correct its __len__, or pass "
        "the number of batches to use as steps_per_epoch (val_steps or steps in evaluation)",
        stacklevel=3,
    )


def warn_shuffled(loader: Any) -> None:
    """Warn that outputs will not be in the order of the dataset."""
    if any(isinstance(sampler, _RANDOM) or getattr(sampler, "shuffle", False) for sampler in samplers(loader)):
        warnings.warn(
            "the loader shuffles, so the outputs are not in the order of its dataset. Pass a loader that does not: "
            "DataLoader(dataset, batch_size=256)",
            stacklevel=3,
        )


def why_empty(loader: Any, name: str) -> str:
    """Explain why a loader yields no batches, with the sizes that matter."""
    samples = length(getattr(loader, "dataset", ()))
    size = batch_size(loader)
    if samples and size and any(getattr(holder, "drop_last", False) for holder in (loader, *samplers(loader))):
        return (
            f"{name} yields no batches: its {samples} samples do not fill one batch of {size}, and drop_last=True "
            "drops them. Use a smaller batch_size or drop_last=False"
        )
    if isinstance(loader, Iterator):
        return (
            f"{name} is a {type(loader).__name__}, which can be read only once and has ended. "
            "Pass a list, a DataLoader, or an object whose __iter__ starts from scratch"
        )
    what = "its dataset" if hasattr(loader, "dataset") else "it"
    return f"{name} ({type(loader).__name__}) yields no batches: {what} is empty"
