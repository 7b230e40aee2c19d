"""Split a batch, move it to the device, count its samples, and detach its output."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .loaders import batch_size

__all__ = [
    "SampleCounter",
    "detached",
    "is_nested",
    "lengths",
    "map_parts",
    "parts_of",
    "split_for_prediction",
    "split_if_pair",
    "split_pair",
    "to_device",
]

_NESTED = (Mapping, list, tuple)
_PLAIN = (str, bytes, int, float, complex, type(None))


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Return `(input, target)` of a batch.

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
    """Return `(input, target)` of a batch. One that is not a pair is all input, and its target is None."""
    return (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)


def split_for_prediction(batch: Any) -> tuple[Any, Any]:
    """Return `(input, target)` of a pair, a list of one input (TensorDataset), or an input alone."""
    return (batch[0], None) if isinstance(batch, (tuple, list)) and len(batch) == 1 else split_if_pair(batch)


def to_device(value: Any, device: torch.device) -> Any:
    """Return `value` with each tensor in it on `device`.

    Goes through dicts, lists, tuples, namedtuples and dataclasses, calls `to(device)` of anything that has it, and
    leaves numbers, strings and None as they are.

    Raises:
        TypeError: it contains something that cannot be moved.
    """
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        # A non-blocking copy to the CPU may be read before it has arrived.
        return value.to(device, non_blocking=device.type != "cpu")
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, _PLAIN):
        return value
    if is_nested(value):
        return map_parts(lambda part: to_device(part, device), value)
    raise TypeError(
        f"expected tensors in the batch, got a {type(value).__module__}.{type(value).__qualname__}, which cannot be "
        f"moved to {device}. Convert it to a tensor in the dataset or collate_fn, or add a method to(device) to its "
        "class"
    )


class SampleCounter:
    """Count the samples of batches: the length that input and target agree on. It never guesses.

    A list may be a list of samples (images of unequal size) or of fields (the two inputs of a model). If both
    are possible, the loader's `batch_size` decides, or else an earlier batch for which only one was possible.

    Args:
        loader: the loader the batches come from.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._batch_size: int | None = None
        self._lists_are_samples: bool | None = None

    def count(self, input: Any, target: Any) -> int | None:
        """Return the number of samples, or None if input and target do not determine it."""
        if isinstance(input, Tensor) and isinstance(target, Tensor) and (shape := input.shape) and target.shape:
            return shape[0] if shape[0] == target.shape[0] else None
        found, others = lengths(input), lengths(target)
        agreed = found & others if others else found
        if target is None and not (isinstance(input, Tensor) or is_nested(input)):
            return None  # The len of an unknown object may be anything.
        if len(agreed) == 1:
            samples = next(iter(agreed))
        elif isinstance(input, (list, tuple)) and len(agreed) == 2 and len(input) in agreed:
            fields = next(iter(agreed - {len(input)}))
            if self._loader is not None:  # not in a run that does not ask for it
                self._batch_size, self._loader = batch_size(self._loader), None
            if self._batch_size is not None and self._batch_size in agreed:
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


def detached(value: Any, half: torch.dtype | None) -> Any:
    """Return a nested value without its graph, and in float32 where autocast has computed it in half precision.

    Args:
        value: the output or target of a batch.
        half: the dtype of autocast, None if the Runner runs in float32.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        return value.float() if value.dtype is half else value
    return map_parts(lambda part: detached(part, half), value) if is_nested(value) else value


def lengths(value: Any) -> set[int]:
    """Return the possible numbers of samples in a value: the lengths of its lists and tensors."""
    if isinstance(value, Tensor):
        return {value.size(0)} if value.dim() else set()
    if isinstance(value, _PLAIN):
        return set()
    if is_nested(value):
        inside = set().union(*map(lengths, parts_of(value)))
        is_list = isinstance(value, (list, tuple)) and not hasattr(value, "_fields")
        return inside | {len(value)} if is_list else inside
    return {len(value)} if hasattr(value, "__len__") else set()


def is_nested(value: Any) -> bool:
    """Return whether a value is a dict, list, tuple, namedtuple or dataclass."""
    return isinstance(value, _NESTED) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def parts_of(value: Any) -> Iterator[Any]:
    """Return the parts of a nested value."""
    if isinstance(value, Mapping):
        return iter(value.values())
    if isinstance(value, (list, tuple)):
        return iter(value)
    return (getattr(value, field.name) for field in dataclasses.fields(value))


def map_parts(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a copy of a nested value with `function` applied to each part."""
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
