"""What the loop does with a batch: split it, move it to the device, count its samples, join the outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["SampleCounter", "concat", "split_for_prediction", "split_if_pair", "split_pair", "to_device"]

_NESTED = (Mapping, list, tuple)
_PLAIN = (str, bytes, int, float, complex, type(None))


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Return ``(input, target)`` of a batch.

    Raises:
        TypeError: the batch is not a pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and batch[1] is not None:
        return batch[0], batch[1]
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list, Mapping)) else ""
    raise TypeError(
        f"expected the loader to yield pairs (input, target), each any nesting of tensors, got a "
        f"{type(batch).__name__}{size}. Return a pair from the dataset or collate_fn, or override Runner.forward, "
        "which finds any other batch whole in state.input"
    )


def split_if_pair(batch: Any) -> tuple[Any, Any]:
    """Return ``(input, target)`` of a batch. One that is not a pair is all input, and its target is None."""
    return (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)


def split_for_prediction(batch: Any) -> tuple[Any, Any]:
    """Return ``(input, target)`` of a pair, an input in a list of its own (TensorDataset), or an input alone."""
    return (batch[0], None) if isinstance(batch, (tuple, list)) and len(batch) == 1 else split_if_pair(batch)


def to_device(value: Any, device: torch.device) -> Any:
    """Return ``value`` with each tensor in it on ``device``.

    Goes through dicts, lists, tuples, namedtuples and dataclasses, calls ``to(device)`` of anything that has it, and
    leaves numbers, strings and None as they are.

    Raises:
        TypeError: it contains something that cannot be moved.
    """
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        # A copy to the CPU that nobody waits for may be read before it has arrived.
        return value.to(device, non_blocking=device.type != "cpu")
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, _PLAIN):
        return value
    if _is_nested(value):
        return _map(lambda part: to_device(part, device), value)
    raise TypeError(
        f"a batch contains a {type(value).__module__}.{type(value).__qualname__}, which cannot be moved to {device}. "
        "Make it a tensor in the dataset or collate_fn, or give its class a method to(device)"
    )


class SampleCounter:
    """Count the samples of batches: the length that input and target agree on, and never a guess.

    A list may be a list of samples (images of unequal size) or of fields (the two inputs of a model). Where both
    readings fit, the loader's ``batch_size`` decides, or else the reading of an earlier batch that left no choice.

    Args:
        loader: the loader the batches come from.
    """

    def __init__(self, loader: Any) -> None:
        self._batch_size = getattr(loader, "batch_size", None)
        self._lists_are_samples: bool | None = None

    def count(self, input: Any, target: Any) -> int | None:
        """Return the number of samples, or None if input and target do not determine it."""
        if isinstance(input, Tensor) and isinstance(target, Tensor) and input.dim() and target.dim():
            size = input.size(0)
            return size if size == target.size(0) else None
        found, others = _lengths(input), _lengths(target)
        agreed = found & others if others else found
        if target is None and not (isinstance(input, Tensor) or _is_nested(input)):
            return None  # The len of an unknown object may be anything.
        if len(agreed) == 1:
            samples = next(iter(agreed))
        elif isinstance(input, (list, tuple)) and len(agreed) == 2 and len(input) in agreed:
            fields = next(iter(agreed - {len(input)}))
            if self._batch_size in agreed:
                samples = self._batch_size
            elif self._lists_are_samples is not None:
                samples = len(input) if self._lists_are_samples else fields
            else:
                return None
        else:
            return None
        if isinstance(input, (list, tuple)):
            self._lists_are_samples = samples == len(input)
        return samples


def _lengths(value: Any) -> set[int]:
    """Return the numbers of samples that a value could hold: the lengths of its lists and tensors."""
    if isinstance(value, Tensor):
        return {value.size(0)} if value.dim() else set()
    if isinstance(value, _PLAIN):
        return set()
    if _is_nested(value):
        inside = set().union(*map(_lengths, _parts(value)))
        is_list = isinstance(value, (list, tuple)) and not hasattr(value, "_fields")
        return inside | {len(value)} if is_list else inside
    return {len(value)} if hasattr(value, "__len__") else set()


def concat(values: Sequence[Any], sizes: Sequence[int | None]) -> Any:
    """Join the outputs of batches along the first dimension, a nested output leaf by leaf in its own structure.

    A list with an entry per sample (the boxes of each image) is extended to one list of all samples.

    Args:
        values: one output per batch.
        sizes: the number of samples of each batch, None where nobody knows.

    Raises:
        ValueError: a list may be read in both ways.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.dim() else torch.stack(list(values))
    if isinstance(first, list) and _are_samples(values, sizes):
        return [sample for value in values for sample in value]
    if _is_nested(first):
        columns = zip(*(_parts(value) for value in values), strict=True)
        joined = iter([concat(column, sizes) for column in columns])
        return _map(lambda _: next(joined), first)
    return list(values)


def _are_samples(lists: Sequence[list[Any]], sizes: Sequence[int | None]) -> bool:
    """Return whether lists have an entry per sample of their batch, rather than one per output of the model.

    Raises:
        ValueError: both readings fit all batches.
    """
    if len({len(entries) for entries in lists}) > 1:  # A model has as many outputs for each batch.
        return True
    if any(size not in (None, len(entries)) for entries, size in zip(lists, sizes, strict=True)):
        return False
    for entries, size in zip(lists, sizes, strict=True):
        found = set().union(*map(_lengths, entries))
        if len(found) != 1 or size not in (None, *found):
            return True
    if len(lists) > 1 and isinstance(lists[0][0], Tensor):
        raise ValueError(
            f"the output is a list of {len(lists[0])} tensors, and they may be one per sample or several outputs of "
            "the model. Return a tuple of outputs, or a list of dicts for samples, or set state.output so in "
            "Runner.forward"
        )
    return True


def _is_nested(value: Any) -> bool:
    return isinstance(value, _NESTED) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        return iter(value.values())
    if isinstance(value, (list, tuple)):
        return iter(value)
    return (getattr(value, field.name) for field in dataclasses.fields(value))


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a copy of a nested value with ``function`` applied to each part."""
    if isinstance(value, tuple):
        parts = [function(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return [function(part) for part in value]
    result = copy.copy(value)
    if isinstance(value, Mapping):
        for key in value:
            result[key] = function(value[key])
    else:
        for field in dataclasses.fields(value):
            # object.__setattr__ also reaches the fields of a frozen dataclass.
            object.__setattr__(result, field.name, function(getattr(value, field.name)))
    return result
