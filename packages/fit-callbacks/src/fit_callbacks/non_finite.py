"""Stop a run whose loss, gradients or buffers are not finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fit_core import Callback, RunnerState, has_process_group
from torch import Tensor, nn

from .shards import local, whole

__all__ = ["StopOnNonFinite"]


class StopOnNonFinite(Callback):
    """Raise an error before the optimizer steps if the loss or a gradient is nan or infinite, or a buffer is nan.

    So the weights are those before the bad batch, and every process stops at the same batch. Buffers, such as the
    statistics of batch norm, may be infinite, as masks are. In fp16 gradients may be infinite too, since the scaler
    skips such a step. The price is that the loss is read once per batch, which makes the host wait for an accelerator,
    and the norm of the gradients is computed once per step. A step of your own has to set `state.loss` before its
    backward pass. If it sets it later, nothing is checked.

    Raises:
        FloatingPointError: something is not finite. The message names it, epoch and batch.

    Examples:
        >>> Runner(model, optimizer, criterion, callbacks=[StopOnNonFinite()]).fit(loader)
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def on_loader_begin(self, state: RunnerState) -> None:
        """Find the buffers to check."""
        if state.is_train:
            self._buffers = [buffer for _, buffer in _named(state, "named_buffers") if _has_nan(buffer)]

    def on_after_backward(self, state: RunnerState) -> None:
        """Check the loss, the buffers, and the gradients if a step follows."""
        if state.loss is None:
            return
        is_bad = ~torch.isfinite(state.loss.detach())
        if self._buffers:
            is_bad = is_bad | _norm(self._buffers).isnan()
        if state.is_optimizer_step and not state.grad_scaler.is_enabled():
            parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
            gradients = [_entries(parameter.grad) for parameter in parameters if parameter.grad is not None]
            is_bad = is_bad | ~torch.isfinite(_norm(gradients))
        if has_process_group():
            count = is_bad.float()
            torch.distributed.all_reduce(count)
            is_bad = count > 0
        if is_bad.item():
            lost = [
                name for name, weight in _named(state, "named_parameters") if not torch.isfinite(local(weight)).all()
            ]
            before = f"{_some(lost)} was not finite before it" if lost else "The weights are those before this batch"
            steps = f"{state.global_step} optimizer step{'' if state.global_step == 1 else 's'}"
            raise FloatingPointError(
                f"{_what_is_bad(state)} in epoch {state.epoch + 1}, batch {state.batch_idx + 1} (after {steps}) on "
                f"rank {state.rank}. {before}. "
                "Try a smaller learning rate, GradientClipping, or bf16 instead of fp16, and look for nan in this batch"
            )


def _what_is_bad(state: RunnerState) -> str:
    if not torch.isfinite(state.loss):
        return f"the loss is {state.loss.item()}"
    buffers = [name for name, b in _named(state, "named_buffers") if _has_nan(b) and b.isnan().any()]
    if buffers:
        return f"the buffer {_some(buffers)} is nan"
    gradients = [(name, p.grad) for name, p in _named(state, "named_parameters") if p.grad is not None]
    infinite = [name for name, gradient in gradients if not torch.isfinite(_entries(local(gradient))).all()]
    return f"the gradient of {_some(infinite)} is not finite" if infinite else "something on another rank is not finite"


def _named(state: RunnerState, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters or buffers of the model, and those of the criterion if it is a module."""
    for prefix, module in (("", state.model), ("criterion.", state.criterion)):
        if isinstance(module, nn.Module):
            for name, tensor in getattr(module, kind)():
                yield prefix + name, tensor


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _entries(gradient: Tensor) -> Tensor:
    """Return the entries of a gradient, without the zeros of the sparse one of an embedding."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all tensors together, which is nan or infinite if one of their entries is."""
    norm: Tensor = whole(nn.utils.get_total_norm(tensors))
    return norm


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
