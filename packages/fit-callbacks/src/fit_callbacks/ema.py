"""Average the weights of the model, and evaluate the average."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from fit_core import Callback, RunnerState, unwrap
from torch import Tensor, nn

from .arguments import check_number
from .lazy import refuse_lazy
from .names import bare_name
from .shards import ShardedAverage, is_sharded

__all__ = ["ModelEma"]


class ModelEma(Callback):
    """Keep an exponential moving average of the weights, and evaluate it instead of the trained model.

    The average starts as the weights at the start of each run. After each optimizer step it becomes
    `decay * average + (1 - decay) * weights`. Buffers, such as the statistics of batch norm, are copied as they are.
    Validation, `evaluate` and `predict` see the average. If the weights of the model are changed after the run,
    `evaluate` and `predict` use the model itself, and warn. A checkpoint contains both: the trained model as
    `["model"]` and the average as `["callbacks"]["ModelEma"]["model"]`. It works at any place in the list of
    callbacks.

    A model that `fully_shard` has split cannot be copied. Each process keeps its part of the average, and puts it
    into the model during each forward pass of an evaluation.

    Args:
        decay: in 0..1, 1 excluded. Closer to 1 means a longer memory (about `1 / (1 - decay)` steps).
        warmup: start with a short memory: the decay of step t is `min(decay, (1 + t) / (10 + t))`, as in TensorFlow's
            ExponentialMovingAverage with `num_updates`.

    Attributes:
        model: the averaged module. None before the first run.

    Raises:
        TypeError: the decay is a model.
        ValueError: the decay is out of range. Before the first step: the model is lazy and does not have weights yet.

    Examples:
        >>> ema = ModelEma(0.999)
        >>> Runner(model, optimizer, criterion, callbacks=[ema]).fit(loader, val_loader=val_loader)
        >>> torch.save(ema.model.state_dict(), "averaged.pt")
    """

    def __init__(self, decay: float = 0.9999, *, warmup: bool = True) -> None:
        if isinstance(decay, nn.Module):
            raise TypeError("expected a decay, got a model. Pass only the decay: ModelEma(0.999)")
        check_number("decay", decay, "[0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.model: nn.Module | None = None
        self._updates = 0
        self._versions: list[tuple[int, int]] | None = None  # of the weights when the run ended

    def on_begin(self, state: RunnerState) -> None:
        """Copy the model. The average of a resumed run is restored after this."""
        self.model, self._trained, self._versions = None, state.model, None
        refuse_lazy(state.model, "ModelEma")
        model = unwrap(state.model)
        sharded = any(map(is_sharded, model.state_dict().values()))
        self.model = (ShardedAverage(model) if sharded else copy.deepcopy(model)).eval()
        self._updates = 0
        self._is_restored = False

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Copy the weights that a resume without a saved average has loaded since."""
        if not self._updates and not self._is_restored and self.model is not None:
            self.model.load_state_dict(unwrap(self._trained).state_dict())
        self._is_restored = True
        if self.model is not None:
            self._pair()

    def on_batch_end(self, state: RunnerState) -> None:
        """Update the average after a step."""
        if state.is_train and state.is_optimizer_step:
            step = self._updates = self._updates + 1
            self._update(min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Put the average in the place of the model, unless the model is another one since."""
        if state.is_train or self.model is None:
            return
        if self._versions is not None and self._versions != _versions(state.model):
            warnings.warn(
                "the weights of the model were changed after the run that ModelEma averaged, so the model itself is "
                'evaluated. To evaluate a saved average, load it: model.load_state_dict(state["callbacks"]["ModelEma"]'
                '["model"])',
                stacklevel=2,
            )
            return
        state.model = self.model.eval()

    def on_loader_end(self, state: RunnerState) -> None:
        """Put the model back."""
        if state.model is self.model:
            state.model = self._trained

    def on_end(self, state: RunnerState) -> None:
        """Put the model back, also if validation did not end."""
        if self.model is not None and self._versions is None:  # Otherwise the run ended before its on_begin.
            state.model = self._trained
            self._versions = _versions(state.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and the number of its updates."""
        assert self.model is not None
        weights = self.model.state_dict()
        return {"model": {bare_name(name): value for name, value in weights.items()}, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the average."""
        assert self.model is not None
        names = {bare_name(name): name for name in self.model.state_dict()}
        self.model.load_state_dict({names.get(name, name): value for name, value in state_dict["model"].items()})
        self._updates, self._is_restored = state_dict["updates"], True

    def _pair(self) -> None:
        """Pair each weight with its average, by dtype, once per epoch. Looking them up costs more than the average."""
        assert self.model is not None
        self._pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for average, weight in zip(self.model.parameters(), unwrap(self._trained).parameters(), strict=True):
            averages, weights = self._pairs.setdefault(weight.dtype, ([], []))
            averages.append(average)
            weights.append(weight)
        self._has_buffers = any(True for _ in self.model.buffers())

    @torch.no_grad()
    def _update(self, decay: float) -> None:
        """Take in the weights. Not by torch's AveragedModel, whose first update copies them and reads a counter."""
        assert self.model is not None
        for averages, weights in self._pairs.values():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        if self._has_buffers:
            for own, buffer in zip(self.model.buffers(), unwrap(self._trained).buffers(), strict=True):
                if own.shape == buffer.shape:
                    own.copy_(buffer, non_blocking=True)
                else:  # Observers of quantization, say, have one value at first and then one per channel.
                    own.data = buffer.clone()


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    """Return which parameters a model has, and how often torch has written to each."""
    return [(id(parameter), parameter._version) for parameter in model.parameters()]
