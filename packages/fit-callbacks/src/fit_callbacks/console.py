"""What a run shows while it runs: a bar where somebody watches, and a line an epoch that stays."""

from __future__ import annotations

import sys
import time
from typing import Any

from fit_core import Callback, RunnerState
from tqdm.auto import tqdm

from .monitor import Best
from .running import running_metrics

__all__ = ["ConsoleLogger"]


class ConsoleLogger(Callback):
    """Shows a bar for each loader and, after each epoch, one line.

    ::

        Epoch  3/15  train loss 0.2131 Acc@1 0.9310  val loss 0.2502 Acc@1 0.9240  lr 1.0e-02  1.2s  41050 samples/s *

    The star marks the best loss so far, of validation where there is one. The bar, with the running loss and metrics,
    is drawn on stderr when that is a terminal, and in notebooks; a log file gets the lines alone, without control
    characters. Values are read from the device only when the bar is redrawn. Writes on rank 0 only.

    Args:
        interval: seconds between two redraws of the bar, above 0.
    """

    def __init__(self, interval: float = 0.25) -> None:
        self.interval = interval
        self.best = Best("min")
        self._bar: Any = None

    def on_begin(self, state: RunnerState) -> None:
        """A new run has no best loss yet; that of a resumed one is restored after this."""
        self.best.value = None

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Start the clock, and count samples from here."""
        self._began, self._samples, self._trained = time.perf_counter(), state.samples_seen, 0.0

    def on_loader_begin(self, state: RunnerState) -> None:
        """Draw the bar."""
        self._close()
        if state.rank:
            return
        epoch = f"Epoch {state.epoch + 1:>{len(str(state.num_epochs))}}/{state.num_epochs}"
        self._bar = tqdm(
            desc=epoch if state.is_train else "Validation",
            total=state.num_batches,
            mininterval=self.interval,
            disable=not (sys.stderr.isatty() or _in_notebook()),
            leave=False,
            dynamic_ncols=True,
        )

    def on_batch_end(self, state: RunnerState) -> None:
        """Move the bar on; when it was redrawn, read the values that the next drawing shows."""
        if self._bar is not None and self._bar.update():
            self._bar.set_postfix(_running(state), refresh=False)

    def on_loader_end(self, state: RunnerState) -> None:
        """Remove the bar."""
        self._close()
        if state.is_train:
            self._trained = time.perf_counter()

    def on_epoch_end(self, state: RunnerState) -> None:
        """Write the line."""
        loss = state.logs.get("train/loss" if state.val_loader is None else "val/loss")
        is_best = loss is not None and self.best.update(loss)
        if state.rank:
            return
        rate = (state.samples_seen - self._samples) / max(self._trained - self._began, 1e-9)
        parts = [f"Epoch {state.epoch + 1:>{len(str(state.num_epochs))}}/{state.num_epochs}"]
        for prefix in ("train", "val"):
            values = [
                f"{key.removeprefix(prefix + '/')} {value:.4f}"
                for key, value in state.logs.items()
                if key.startswith(prefix + "/")
            ]
            parts += [" ".join([prefix, *values])] if values else []
        parts += [f"lr {state.optimizer.param_groups[0]['lr']:.1e}"]
        parts += [f"{time.perf_counter() - self._began:.1f}s", f"{rate:.0f} samples/s"]
        tqdm.write("  ".join(parts) + (" *" if is_best else ""), file=sys.stdout)

    def on_end(self, state: RunnerState) -> None:
        """Leave no bar behind, whatever happened."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from that best loss."""
        self.best.load_state_dict(state_dict)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _in_notebook() -> bool:
    return any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)


def _running(state: RunnerState) -> dict[str, str]:
    """Loss and metrics so far. Reading them waits for the device."""
    losses = {name: float(meter.compute()) for name, meter in state.loss_meters.items()}
    return {name: f"{value:.4f}" for name, value in {**losses, **running_metrics(state)}.items()}
