"""The end of a run whose loss is no number any more."""

from __future__ import annotations

import torch
from fit_core import Callback, RunnerState, has_process_group

__all__ = ["StopOnNonFinite"]


class StopOnNonFinite(Callback):
    """Raise an error if the loss of a training batch is nan or infinite, before the optimizer steps.

    So the weights are those before the bad batch, and every process stops at the same batch. The price is that the
    loss is read once per batch, which makes the host wait for an accelerator. A step of your own has to set
    ``state.loss`` before its backward pass. One that sets it later is not checked.

    Raises:
        FloatingPointError: the loss is nan or infinite. The message names epoch and batch.
    """

    def on_after_backward(self, state: RunnerState) -> None:
        """Check the loss."""
        if state.loss is None:
            return
        is_bad = ~torch.isfinite(state.loss.detach())
        if has_process_group():
            count = is_bad.float()
            torch.distributed.all_reduce(count)
            is_bad = count > 0
        if is_bad.item():
            raise FloatingPointError(
                f"the loss is {state.loss.item()} in epoch {state.epoch + 1}, batch {state.batch_idx + 1} (after "
                f"{state.global_step} optimizer steps) on rank {state.rank}; the weights are those before it. "
                "Try a smaller learning rate, GradientClipping, or bf16 in place of fp16; look at this batch for nan"
            )
