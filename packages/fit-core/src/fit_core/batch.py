"""What the loop does with a batch: tell input from target, move it to the device, count and join samples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["concat", "count_samples", "no_loss", "only_input", "pair", "pair_or_whole", "to_device"]

_PLAIN = (str, bytes, int, float, complex, type(None))


def pair(batch: Any) -> tuple[Any, Any]:
    """``(input, target)`` of a batch.

    Raises:
        TypeError: the batch is no pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and batch[1] is not None:
        return batch[0], batch[1]
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list, Mapping)) else ""
    raise TypeError(
        f"the loader gave a {type(batch).__name__}{size}, expected a pair (input, target), each any nesting of "
        "tensors: let the dataset or collate_fn return a pair, or override Runner._make_step, "
        "which then finds the whole batch in state.input"
    )


def pair_or_whole(batch: Any) -> tuple[Any, Any]:
    """``(input, target)`` of a batch; one that is no pair is all input, and its target None."""
    return (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)


def only_input(batch: Any) -> tuple[Any, None]:
    """The input of a batch that may be a pair, an input in a list of its own (TensorDataset), or the input itself."""
    return (batch[0] if isinstance(batch, (tuple, list)) and len(batch) in (1, 2) else batch), None


def no_loss(output: Any, target: Any) -> Any:
    """The criterion of a prediction, which has no target."""
    return None


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with each tensor in it on ``device``.

    Goes through dicts, lists, tuples, namedtuples and dataclasses; calls ``to(device)`` of anything that has it;
    leaves numbers, strings and None as they are.

    Raises:
        TypeError: there is something in it that cannot be moved.
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
        f"a batch holds a {type(value).__module__}.{type(value).__qualname__}, which cannot be moved to {device}: "
        "make it a tensor in the dataset or collate_fn, or give its class a method to(device)"
    )


def count_samples(value: Any) -> int:
    """How many samples a batch holds: the length of the first dimension of the first tensor in it.

    Raises:
        TypeError: there is nothing in it that has a length.
    """
    if isinstance(value, Tensor):
        return value.size(0) if value.dim() else 1
    for part in _parts(value) if _is_nested(value) else ():
        if isinstance(part, Tensor) or _is_nested(part):
            return count_samples(part)
    if hasattr(value, "__len__"):
        return len(value)
    raise TypeError(
        f"cannot tell how many samples a batch of type {type(value).__qualname__} holds: "
        "let it hold a tensor, or give its class a __len__"
    )


def concat(values: Sequence[Any]) -> Any:
    """Join the outputs of batches along the first dimension; a nested output leaf by leaf, in its own structure."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.dim() else torch.stack(list(values))
    if _is_nested(first):
        columns = zip(*(_parts(value) for value in values), strict=True)
        joined = iter([concat(column) for column in columns])
        return _map(lambda _: next(joined), first)
    return list(values)


def _is_nested(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        return iter(value.values())
    if isinstance(value, (list, tuple)):
        return iter(value)
    return (getattr(value, field.name) for field in dataclasses.fields(value))


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """A copy of a nested value with ``function`` applied to each part."""
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
