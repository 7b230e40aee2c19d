"""The end of a run whose loss is no number any more."""

from __future__ import annotations

import torch
from fit_core import Callback, RunnerState, has_process_group

__all__ = ["StopOnNonFinite"]


class StopOnNonFinite(Callback):
    """Raises when the loss of a training batch is nan or infinite, before the optimizer makes a step of it.

    So the weights are those before the bad batch, and every process stops at the same one. Its price: the loss is read
    in each step, which makes the host wait for an accelerator.

    Raises:
        FloatingPointError: the loss is nan or infinite; the message names epoch and step.
    """

    def on_after_backward(self, state: RunnerState) -> None:
        """Look at the loss."""
        assert state.loss is not None
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
