"""A second model that is the moving average of the first."""

from __future__ import annotations

from typing import Any

from fit_core import Callback, RunnerState, unwrap
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .arguments import check_number

__all__ = ["ModelEma"]


class ModelEma(Callback):
    """Keeps an exponential moving average of the weights, and evaluates it in place of the model that is trained.

    After each optimizer step ``average = decay * average + (1 - decay) * weights``, by torch's AveragedModel; buffers,
    such as the statistics of batch norm, are copied as they are. Validation, ``evaluate`` and ``predict`` see the
    average. A checkpoint holds both: the trained model as ``["model"]`` and the average as
    ``["callbacks"]["ModelEma"]["model"]``. It may stand anywhere in the list of callbacks.

    Args:
        decay: in 0..1; the nearer to 1, the longer the memory (about ``1 / (1 - decay)`` steps).
        warmup: begin with less memory: the decay of step t is ``min(decay, (1 + t) / (10 + t))``, as in TensorFlow's
            ExponentialMovingAverage with ``num_updates``.

    Attributes:
        model: the averaged module; None before the first run.

    Raises:
        ValueError: the decay is out of its range.

    Example:
        >>> ema = ModelEma(0.999)
        >>> Runner(model, optimizer, criterion, callbacks=[ema]).fit(loader, val_loader=val_loader)
        >>> torch.save(ema.model.state_dict(), "averaged.pt")
    """

    def __init__(self, decay: float = 0.9999, *, warmup: bool = True) -> None:
        if isinstance(decay, nn.Module):
            raise TypeError("expected a decay, got a model. ModelEma finds the model in the run: ModelEma(0.999)")
        check_number("decay", decay, "[0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.model: nn.Module | None = None
        self._updates = 0

    def on_begin(self, state: RunnerState) -> None:
        """The average begins as the model is; that of a resumed run is restored after this."""
        self._trained = state.model
        self._averaged = AveragedModel(unwrap(state.model))
        self.model, self._updates = self._averaged.module.eval(), 0

    def on_batch_end(self, state: RunnerState) -> None:
        """Take in the weights after a step."""
        if state.is_train and state.is_optimizer_step:
            step = self._updates = self._updates + 1
            decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
            self._averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self._averaged.update_parameters(unwrap(self._trained))

    def on_loader_begin(self, state: RunnerState) -> None:
        """Evaluate the average."""
        if not state.is_train and self.model is not None:
            state.model = self.model.eval()

    def on_loader_end(self, state: RunnerState) -> None:
        """Train the model."""
        if self.model is not None:
            state.model = self._trained

    def on_end(self, state: RunnerState) -> None:
        """Leave the model in its place, also when validation was broken off."""
        if self.model is not None:
            state.model = self._trained

    def state_dict(self) -> dict[str, Any]:
        """The averaged model, and the number of its updates."""
        assert self.model is not None
        weights = self.model.state_dict()
        return {"model": {_bare(name): value for name, value in weights.items()}, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on averaging from there."""
        assert self.model is not None
        self.model.load_state_dict({name: state_dict["model"][_bare(name)] for name in self.model.state_dict()})
        self._updates = state_dict["updates"]
        self._averaged.n_averaged.fill_(self._updates)


def _bare(name: str) -> str:
    """Return the name of a weight without the marks of layers that were compiled by themselves."""
    return name.replace("_orig_mod.", "")
