"""How long the model waited for its data."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from fit_core import Callback, RunnerState

from .arguments import check_number
from .ranks import print_line

__all__ = ["Timer"]


class Timer(Callback):
    """Tells which share of the training time the model waited for the loader, and what to do when it is much.

    The share, in 0..1, is in the logs as ``data_wait``. Where it exceeds ``advise_above``, and a second, a line says so
    once a run. On an accelerator the time is measured by events on its own clock, which are read when they have long
    passed: the host may run ahead, and what counts is how long the device had nothing to do. What callbacks after this
    one do in ``on_checkpoint`` counts as waiting.

    Args:
        advise_above: share of the time above which to give advice, in 0..1.

    Example:
        >>> runner = Runner(model, optimizer, criterion, callbacks=[Timer()])
        >>> runner.fit(loader)[-1]["data_wait"]
        0.03
    """

    def __init__(self, advise_above: float = 0.2) -> None:
        check_number("advise_above", advise_above, "[0, inf]")
        self.advise_above = advise_above
        self._waits: HostWaits | DeviceWaits = HostWaits()
        self._advised = False

    def on_begin(self, state: RunnerState) -> None:
        """A new run may be given advice again."""
        self._advised = False

    def on_loader_begin(self, state: RunnerState) -> None:
        """From here the model waits for the first batch."""
        if state.is_train:
            self._waits = HostWaits() if state.device.type == "cpu" else DeviceWaits(state.device)
            self._began = time.perf_counter()
            self._waits.begin()

    def on_batch_begin(self, state: RunnerState) -> None:
        """The batch is there."""
        if state.is_train:
            self._waits.end()

    def on_checkpoint(self, state: RunnerState) -> None:
        """The batch is done; from here the model waits for the next."""
        self._waits.begin()

    def on_loader_end(self, state: RunnerState) -> None:
        """Log the share, and give advice."""
        if not state.is_train:
            return
        waited, total = self._waits.seconds(), time.perf_counter() - self._began
        share = state.logs["data_wait"] = min(1.0, waited / max(total, 1e-9))
        if share > self.advise_above and waited > 1 and not self._advised:  # less is not worth anybody's time
            self._advised = True
            print_line(
                state,
                f"Timer: in epoch {state.epoch + 1} the model waited for data {share:.0%} of the time "
                f"({waited:.1f} of {total:.1f} s): {_advice(state.loader)}",
            )


class HostWaits:
    """Adds up waits by the clock of this process."""

    def __init__(self) -> None:
        self._total = 0.0
        self._since = 0.0

    def begin(self) -> None:
        self._since = time.perf_counter()

    def end(self) -> None:
        self._total += time.perf_counter() - self._since

    def seconds(self) -> float:
        return self._total


class DeviceWaits:
    """Adds up waits by events in the accelerator's queue, each read once the device has passed it."""

    def __init__(self, device: torch.device) -> None:
        self._device = torch.get_device_module(device)
        self._pairs: deque[tuple[Any, Any]] = deque()
        self._milliseconds = 0.0

    def begin(self) -> None:
        self._since = self._mark()

    def end(self) -> None:
        self._pairs.append((self._since, self._mark()))
        while self._pairs and self._pairs[0][1].query():
            self._read()

    def seconds(self) -> float:
        if self._pairs:
            self._pairs[-1][1].synchronize()  # once an epoch
        while self._pairs:
            self._read()
        return self._milliseconds / 1000

    def _mark(self) -> Any:
        event = self._device.Event(enable_timing=True)
        event.record()
        return event

    def _read(self) -> None:
        begin, end = self._pairs.popleft()
        self._milliseconds += begin.elapsed_time(end)


def _advice(loader: Any) -> str:
    workers = getattr(loader, "num_workers", None)
    if workers is None:
        return "prepare batches ahead, in a DataLoader with num_workers"
    if workers == 0:
        return "give the DataLoader workers, num_workers=4 say"
    if not loader.persistent_workers:
        return f"the {workers} workers start anew each epoch: set persistent_workers=True; then try more of them"
    return f"{workers} workers are not enough: try more, or do less for each sample"
