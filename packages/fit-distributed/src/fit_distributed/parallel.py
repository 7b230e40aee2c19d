"""Put a model on the device of this process, and average its gradients over all processes, or shard it."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from fit_core import has_process_group
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .environment import device, world_size

__all__ = ["parallel"]


def parallel(model: nn.Module, *, sync_bn: bool = False, fsdp: bool = False, **options: Any) -> nn.Module:
    """Move the model to the device of this process, and wrap it in DistributedDataParallel if there are several.

    With `fsdp=True` it is sharded instead, for a model whose optimizer state does not fit one device: torch's
    `fully_shard` splits each layer of the outermost `nn.Sequential` and `nn.ModuleList`, and the rest together.

    After this call each process draws other random numbers, for augmentation and dropout: the generators of torch,
    Python and NumPy are seeded again on all ranks except 0, from their state and the rank. Seed them before.

    In eval mode the model runs without the other processes, so they may evaluate different numbers of batches, or none.
    The gradients of a backward pass in eval mode are not averaged. A sharded model always runs on all processes.

    Args:
        model: any module. Create the optimizer from the parameters of the result.
        sync_bn: compute batch norm statistics over the batches of all processes. Accelerators only.
        fsdp: shard the model. It starts with the weights of rank 0.
        **options: options of DistributedDataParallel, such as `find_unused_parameters=True`, or of `fully_shard`,
            such as `mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)`.

    Returns:
        The model, wrapped or sharded if there are several processes.

    Raises:
        TypeError: `model` is not a module.
        RuntimeError: there are several processes without a process group.

    Examples:
        >>> model = parallel(Net())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}. Write parallel(Net())")
    here = device()
    model = model.to(here)
    if world_size() == 1:
        return model
    if not has_process_group():
        raise RuntimeError(
            f"expected a process group for {world_size()} processes, got none. Call parallel inside the function that "
            "you launch, or call torch.distributed.init_process_group() first"
        )
    if sync_bn and here.type == "cpu":
        warnings.warn("sync_bn works on accelerators only. On the CPU each process uses its own batch", stacklevel=2)
    elif sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    _draw_apart(distributed.get_rank())
    if fsdp:
        return _shard(model, options)
    return _Parallel(model, device_ids=None if here.type == "cpu" else [here], **options)


def _shard(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    weights = [tensor.data for tensor in (*model.parameters(), *model.buffers())]
    world: Any = distributed.group.WORLD
    distributed._broadcast_coalesced(world, weights, 2**28, 0)  # type: ignore[attr-defined]
    for layer in _layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of the outermost containers that have parameters."""
    for child in module.children():
        is_layer = isinstance(module, (nn.Sequential, nn.ModuleList)) and type(child) is not nn.ModuleList
        if is_layer and any(True for _ in child.parameters()):
            yield child
        elif not is_layer:
            yield from _layers(child)


def _draw_apart(rank: int) -> None:
    """Seed the global random generators, so that ranks with the same seed draw different numbers."""
    if rank == 0:
        return
    torch.manual_seed(int(torch.randint(2**62, ())) + rank)
    random.seed(random.getrandbits(62) + rank)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed((int(numpy.random.randint(2**31)) + rank) % 2**32)


class _Parallel(DistributedDataParallel):
    """Synchronize in training only, and leave all processes with the same buffers after each step.

    DistributedDataParallel copies rank 0's buffers to all before a forward pass. Then each process evaluates with other
    running statistics, which are not in a checkpoint. Copying them after the pass costs the same.
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
            # Only the data, without autograd: backward in training mode uses the statistics of the batch.
            buffers = [buffer.data for name, buffer in named if name not in self.parameters_to_ignore]
            if buffers:
                distributed._broadcast_coalesced(self.process_group, buffers, 2**28, 0)  # type: ignore[attr-defined]
        return output
