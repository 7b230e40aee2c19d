"""Find weights that are nan or infinite, which a checkpoint should not contain."""

from __future__ import annotations

import torch
from fit_core import RunnerState

from ..shards import local

__all__ = ["not_finite"]


def not_finite(state: RunnerState, *, parameters: bool = True) -> set[str]:
    """Return the names of the parameters and buffers of model and criterion that contain nan or infinity.

    Of a sharded one, this process looks at its part.
    """
    tensors = {
        f"{number}.{name}": local(value.detach())
        for number, module in enumerate((state.model, state.criterion))
        if isinstance(module, torch.nn.Module)
        for name, value in (*(module.named_parameters() if parameters else ()), *module.named_buffers())
        if value.is_floating_point() or value.is_complex()
    }
    sums = [(torch.view_as_real(t) if t.is_complex() else t).sum(dtype=torch.float32) for t in tensors.values()]
    if not sums or bool(torch.stack(sums).isfinite().all()):  # One reading of the device.
        return set()
    return {name for name, value in tensors.items() if not bool(value.isfinite().all())}
