"""A model on the device of this process, its gradients averaged over all processes."""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any

import torch
from fit_core import has_process_group
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .environment import device, world_size

__all__ = ["parallel"]


def parallel(model: nn.Module, *, sync_bn: bool = False, **ddp_options: Any) -> nn.Module:
    """The model on the device of this process, in DistributedDataParallel if there are several.

    From here on each process draws random numbers of its own, for augmentation and dropout: the generators of torch,
    Python and NumPy are seeded again on all ranks but 0, from their state and the rank. Seed them before.

    In eval mode the model is called without the others: processes may evaluate unequally many batches, or none, and
    the gradients of a backward pass there stay with the process.

    Args:
        model: any module. Make the optimizer from what is returned.
        sync_bn: let batch norms see the batches of all processes. Accelerators only.
        **ddp_options: options of DistributedDataParallel, such as ``find_unused_parameters=True``.

    Returns:
        The model itself for one process.

    Raises:
        TypeError: ``model`` is not a module.
        RuntimeError: there are several processes, but no process group.

    Example:
        >>> model = parallel(Net())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: parallel(Net())")
    here = device()
    model = model.to(here)
    if world_size() == 1:
        return model
    if not has_process_group():
        raise RuntimeError(
            f"there are {world_size()} processes, but no process group: call parallel inside the function that you "
            "launch, or call torch.distributed.init_process_group() first"
        )
    if sync_bn and here.type == "cpu":
        warnings.warn("sync_bn works on accelerators only: on the CPU each process keeps to its batch", stacklevel=2)
    elif sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    _draw_apart(distributed.get_rank())
    return _Parallel(model, device_ids=None if here.type == "cpu" else [here], **ddp_options)


def _draw_apart(rank: int) -> None:
    """Seed the global random generators, so that ranks with the same seed draw different numbers. Rank 0 keeps its."""
    if rank == 0:
        return
    torch.manual_seed(int(torch.randint(2**62, ())) + rank)
    random.seed(random.getrandbits(62) + rank)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed((int(numpy.random.randint(2**31)) + rank) % 2**32)


class _Parallel(DistributedDataParallel):
    """Takes part in training only, after which all processes have the same buffers.

    DistributedDataParallel copies rank 0's buffers to all before a forward pass, and so lets the processes evaluate
    with running statistics of their own, which no checkpoint holds. Copied after it, they cost as much.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self._share_buffers, self.broadcast_buffers = self.broadcast_buffers, False

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        if not self.training:
            return self.module(*inputs, **kwargs)
        output = super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        if self._share_buffers and self.require_backward_grad_sync and torch.is_grad_enabled():
            named = self.module.named_buffers()
            # The data alone: autograd need not know, since backward in training mode uses the batch's statistics.
            buffers = [buffer.data for name, buffer in named if name not in self.parameters_to_ignore]
            if buffers:
                distributed._broadcast_coalesced(self.process_group, buffers, 2**28, 0)  # type: ignore[attr-defined]
        return output
