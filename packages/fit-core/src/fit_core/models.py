"""Find the module inside its wrappers, its device, and the modes of its submodules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["bare_name", "common_device", "keep_modes", "unwrap"]


def unwrap(model: Any) -> Any:
    """Return the module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def bare_name(name: str) -> str:
    """Return the name of an entry without the marks of submodules that were compiled by themselves."""
    return name.replace("_orig_mod.", "")


def common_device(module: nn.Module, name: str) -> torch.device | None:
    """Return the device of a module's parameters and buffers, or None if it has none.

    Args:
        module: the module to look at.
        name: its name in the message.

    Raises:
        ValueError: they are on more than one device.
    """
    devices: dict[torch.device, str] = {}
    for tensors in (module.named_parameters(), module.named_buffers()):
        for tensor_name, tensor in tensors:
            devices.setdefault(tensor.device, tensor_name)
    if len(devices) > 1:
        places = ", ".join(f"{tensor_name} on {device}" for device, tensor_name in devices.items())
        raise ValueError(
            f"expected the {name} on one device, got it on {len(devices)} devices ({places}). "
            f"Move it: {name}.to(device)"
        )
    return next(iter(devices), None)


@contextmanager
def keep_modes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the train or eval mode of every submodule at the end, also after an exception."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
