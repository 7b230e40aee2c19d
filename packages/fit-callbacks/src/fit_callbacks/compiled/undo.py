"""Put tensors back that a step has changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["NumberIsReadError", "Undo"]

aten = torch.ops.aten
INDEX = (aten.index.Tensor, aten._unsafe_index.Tensor)
READ = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)


class NumberIsReadError(Exception):
    """A step reads a number from a tensor."""


class Undo(TorchDispatchMode):
    """Keep the numbers of each tensor before an operation changes it in place, and restore them at the end.

    Args:
        changed: tensors to keep anyway. Some operations do not say what they change, such as that of a BatchNorm.

    Raises:
        NumberIsReadError: an operation reads a number from a tensor, or the shape of its result depends on one.
    """

    def __init__(self, changed: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._new: set[int] = set()  # the storages of tensors that were made meanwhile, which need no restoring
        for tensor in changed:
            self._keep(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and keep before what it changes."""
        kwargs = kwargs or {}
        if self._reads(func, args):
            raise NumberIsReadError
        if func._schema.is_mutable:
            for number, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[number] if number < len(args) else kwargs.get(argument.name)
                    for tensor in value if isinstance(value, (list, tuple)) else [value]:
                        if isinstance(tensor, Tensor):
                            self._keep(tensor)
        result = func(*args, **kwargs)
        if not any(value.alias_info for value in func._schema.returns):
            leaves = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self._new |= {leaf.untyped_storage()._cdata for leaf in leaves if leaf.layout is torch.strided}
        return result

    def __exit__(self, *error: Any) -> None:
        """Restore them, in reverse, because one may be a view of another."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # nor this
        with torch.no_grad():
            for tensor, value in reversed(self._kept.values()):
                tensor.copy_(value)

    def _reads(self, func: Any, args: Any) -> bool:
        if func in INDEX:  # They have the tag below, though only with a mask the shape depends on numbers.
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if func in READ:
            return any(isinstance(tensor, Tensor) and self._is_old(tensor) for tensor in args)
        return torch.Tag.dynamic_output_shape in func.tags

    def _is_old(self, tensor: Tensor) -> bool:
        return tensor.layout is not torch.strided or tensor.untyped_storage()._cdata not in self._new

    def _keep(self, tensor: Tensor) -> None:
        if self._is_old(tensor) and id(tensor) not in self._kept:
            self._kept[id(tensor)] = tensor, tensor.detach().clone()
