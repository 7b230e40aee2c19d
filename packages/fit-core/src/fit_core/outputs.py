"""Collect the outputs of all batches on the CPU for `predict`, and join them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .batch import detached, is_nested, lengths, map_parts, parts_of, to_device
from .notes import describe

__all__ = ["Outputs", "concat"]

_CPU = torch.device("cpu")


class Outputs:
    """Collect the outputs of a loader's batches.

    Args:
        half: the dtype of autocast, whose outputs become float32. None if the Runner runs in float32.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        self._half = half
        self._values: list[Any] = []
        self._sizes: list[int | None] = []

    def add(self, output: Any, size: int | None) -> None:
        """Copy the output of a batch to the CPU, without its graph.

        Args:
            output: any nesting of tensors.
            size: the number of samples, None if it is unknown.

        Raises:
            ValueError: it is None, or cannot be joined to the output of the first batch.
        """
        if output is None and not self._values:
            raise ValueError("expected an output to predict, got None. Set self.state.output in Runner.forward")
        value = detached(to_device(output, _CPU), self._half)
        if self._values and not _can_join(self._values[0], value):
            raise ValueError(
                f"expected outputs that can be joined along the first dimension, such as that of batch 1, "
                f"{describe(self._values[0])}, got {describe(value)} in batch {len(self._values) + 1}. Pad the outputs "
                "to one shape, or return a list with an entry per sample: state.output = list(...) in Runner.forward"
            )
        self._values.append(value)
        self._sizes.append(size)

    def joined(self) -> Any:
        """Return all outputs as one. See `concat`."""
        return concat(self._values, self._sizes)


def concat(values: Sequence[Any], sizes: Sequence[int | None]) -> Any:
    """Join the outputs of batches along the first dimension, keeping the structure of nested outputs.

    A list with an entry per sample (the boxes of each image) is extended to one list of all samples.

    Args:
        values: one output per batch.
        sizes: the number of samples of each batch, None if it is unknown.

    Raises:
        ValueError: a list may be of samples or of outputs.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.dim() else torch.stack(list(values))
    if isinstance(first, list) and _are_samples(values, sizes):
        return [sample for value in values for sample in value]
    if is_nested(first):
        if isinstance(first, Mapping):
            columns = [[value[key] for value in values] for key in first]
        else:
            columns = [list(column) for column in zip(*map(parts_of, values), strict=True)]
        joined = iter([concat(column, sizes) for column in columns])
        return map_parts(lambda _: next(joined), first)
    return list(values)


def _are_samples(lists: Sequence[list[Any]], sizes: Sequence[int | None]) -> bool:
    """Return whether lists have an entry per sample of their batch, rather than one per output of the model.

    Raises:
        ValueError: both are possible for all batches.
    """
    if len({len(entries) for entries in lists}) > 1:  # A model has as many outputs for each batch.
        return True
    if any(size not in (None, len(entries)) for entries, size in zip(lists, sizes, strict=True)):
        return False
    for entries, size in zip(lists, sizes, strict=True):
        found = set().union(*map(lengths, entries))
        if len(found) != 1 or size not in (None, *found):
            return True
    if len(lists) > 1 and isinstance(lists[0][0], Tensor):
        raise ValueError(
            f"expected either outputs or samples, got a list of {len(lists[0])} tensors, which could be both. Set "
            "state.output in Runner.forward to a tuple of outputs, or to a list of dicts, one per sample"
        )
    return True


def _can_join(first: Any, value: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(value, Tensor) and first.dim() == value.dim() and first.shape[1:] == value.shape[1:]
    if not is_nested(first):
        return not isinstance(value, Tensor) and not is_nested(value)
    if type(first) is not type(value):
        return False
    if isinstance(first, list):  # It may have an entry per sample, of any shape.
        return True
    if isinstance(first, Mapping):
        return first.keys() == value.keys() and all(_can_join(first[key], value[key]) for key in first)
    pairs = list(parts_of(first)), list(parts_of(value))
    return len(pairs[0]) == len(pairs[1]) and all(map(_can_join, *pairs))
