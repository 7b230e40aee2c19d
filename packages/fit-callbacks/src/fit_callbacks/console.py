"""Show a run while it runs: a bar and a table in terminals, a live table and curve in notebooks, rows in files."""

from __future__ import annotations

import time
from typing import Any

from fit_core import Callback, RunnerState

from .arguments import check_number
from .monitor import Best
from .notebook import Notebook, in_notebook
from .table import Row
from .terminal import Terminal

__all__ = ["ConsoleLogger"]


class ConsoleLogger(Callback):
    """Show a bar for each loader and print a row of a table after each epoch.

    ```text
           ------- train --------  -------- val ---------
    epoch    loss   Acc@1   Acc@5    loss   Acc@1   Acc@5      lr    time    left
     1/15   1.055  0.5825  0.9425  0.4724  0.8400  0.9980    0.02    1.1s     16s *
    ```

    The star marks the best loss so far, of validation if the run validates. `left` is the time until the end of the
    run, at the speed of its epochs so far. The table fits the terminal: numbers get shorter and the last columns are
    left out. If the results are too many for a row, each epoch gets a few lines of names and values.

    The bar is drawn on stderr if that is a terminal. A log file gets one line per epoch, written at once, without
    control characters. A notebook gets a table and the curve of the loss (with matplotlib), updated in place. Values
    are read from the device only when the bar is redrawn. Prints on rank 0 only.

    Shows what is in `state.logs` with a `/` in its name, such as `val/loss`.

    Args:
        interval: seconds between two redraws of the bar, 0 or more.

    Examples:
        >>> Runner(model, optimizer, criterion, metrics, callbacks=[ConsoleLogger()]).fit(loader, epochs=15)
    """

    def __init__(self, interval: float = 0.25) -> None:
        check_number("interval", interval, "[0, inf)")
        self.interval = interval
        self.best = Best("min")
        self._view = Notebook(interval) if in_notebook() else Terminal(interval)

    def on_begin(self, state: RunnerState) -> None:
        """Start a table. The best loss of a resumed run is restored after this."""
        self.best.value = None
        self._began, self._epochs = 0.0, 0.0
        self._view.begin(state)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Start the clock, and count samples from here."""
        self._epoch_began, self._samples, self._trained = time.perf_counter(), state.samples_seen, 0.0
        self._began = self._began or self._epoch_began

    def on_loader_begin(self, state: RunnerState) -> None:
        """Draw the bar."""
        if state.is_train and state.num_batches and state.batch_idx:  # a part of a resumed epoch ran before
            self._epochs -= state.batch_idx / state.num_batches
        if state.rank == 0:
            self._view.begin_loader(state)

    def on_batch_end(self, state: RunnerState) -> None:
        """Advance the bar."""
        if state.rank == 0:
            self._view.end_batch(state)

    def on_loader_end(self, state: RunnerState) -> None:
        """Remove the bar."""
        if state.rank == 0:
            self._view.end_loader(state)
        if state.is_train:
            self._trained = time.perf_counter()

    def on_epoch_end(self, state: RunnerState) -> None:
        """Print the row."""
        loss = state.logs.get("train/loss" if state.val_loader is None else "val/loss")
        is_best = loss is not None and self.best.update(loss)
        if state.rank:
            return
        now, done = time.perf_counter(), state.epoch + 1
        self._epochs += 1
        results = {name: value for name, value in state.logs.items() if "/" in name}
        names = dict.fromkeys(results)
        if state.val_loader is not None:  # so that the columns stay the same with validate_every
            names |= {f"val/{name.removeprefix('train/')}": None for name in results if name.startswith("train/")}
        row = Row(
            epoch=f"{done}/{state.num_epochs}",
            results=results,
            names=names,
            lr=state.logs["lr"],
            seconds=now - self._epoch_began,
            left=(state.num_epochs - done) * (now - self._began) / max(self._epochs, 1e-9),
            rate=(state.samples_seen - self._samples) / max(self._trained - self._epoch_began, 1e-9),
            is_best=is_best,
        )
        self._view.end_epoch(state, row)

    def on_end(self, state: RunnerState) -> None:
        """Remove the bar."""
        if state.rank == 0:
            self._view.end(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss so far."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from that best loss."""
        self.best.load_state_dict(state_dict)
