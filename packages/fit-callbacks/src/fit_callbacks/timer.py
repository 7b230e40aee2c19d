"""Measure how long the model waits for data."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from fit_core import Callback, RunnerState, samplers
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from .arguments import check_number
from .numbers import duration
from .ranks import print_line

__all__ = ["Timer"]


class Timer(Callback):
    """Measure the share of the training time that the model waits for the loader, and print advice if it is large.

    The share, in 0..1, is logged as `data_wait`. If it exceeds `advise_above` and one second, a line compares the
    time of the data with the time of training and says what to change, once per run. On an accelerator the device's own
    clock measures how long the device was idle, with events that are read long after they have passed, so the host can
    run ahead. The time that later callbacks in the list spend in `on_checkpoint` counts as waiting.

    Args:
        advise_above: the share of the time above which to print advice, in 0..1.

    Examples:
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
        """Allow advice again in a new run."""
        self._advised = False

    def on_loader_begin(self, state: RunnerState) -> None:
        """Start to wait for the first batch."""
        if state.is_train:
            self._waits = HostWaits() if state.device.type == "cpu" else DeviceWaits(state.device)
            self._began = time.perf_counter()
            self._batches = 0
            self._waits.begin()

    def on_batch_begin(self, state: RunnerState) -> None:
        """End the wait for the batch."""
        if state.is_train:
            self._waits.end()
            self._batches += 1

    def on_checkpoint(self, state: RunnerState) -> None:
        """Start to wait for the next batch."""
        self._waits.begin()

    def on_loader_end(self, state: RunnerState) -> None:
        """Log the share, and print advice."""
        if not state.is_train:
            return
        waited, total = self._waits.seconds(), time.perf_counter() - self._began
        share = state.logs["data_wait"] = min(1.0, waited / max(total, 1e-9))
        if share > self.advise_above and waited > 1 and not self._advised:  # less is not worth the effort
            self._advised = True
            trained = max(0.0, total - waited)
            print_line(
                state,
                f"Timer: in epoch {state.epoch + 1} waiting for data took {duration(waited)} and training "
                f"{duration(trained)} (per batch {duration(waited / self._batches)} and "
                f"{duration(trained / self._batches)}). {_advice(state.loader)}",
            )


class HostWaits:
    """Sum the waits by the clock of this process."""

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
    """Sum the waits by events in the accelerator's queue. Each is read after the device has passed it."""

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
            self._pairs[-1][1].synchronize()  # once per epoch
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
    if _collates_a_tensor_dataset(loader):
        return (
            "The loader collates tensors sample by sample. Index them once per batch, without workers: DataLoader("
            f"dataset, batch_size=None, sampler=BatchSampler({_order(loader.sampler)}, {loader.batch_size}, "
            f"drop_last={loader.drop_last})). The samplers are in torch.utils.data"
        )
    workers = getattr(loader, "num_workers", None)
    if workers is None:
        return "Prepare batches in the background: use a DataLoader with num_workers"
    if workers == 0:
        return "Use workers: DataLoader(..., num_workers=4)"
    if not loader.persistent_workers:
        return f"The {workers} workers restart in each epoch. Set persistent_workers=True, then try more workers"
    return f"{workers} workers are not enough. Try more, or do less work per sample"


def _collates_a_tensor_dataset(loader: Any) -> bool:
    """Return whether a loader makes its batches of the samples of tensors that could be indexed at once."""
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return False
    dataset: Any = loader.dataset
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return type(dataset) is TensorDataset and loader.collate_fn is default_collate and loader.batch_size is not None


def _order(sampler: Any) -> str:
    """Return the code that makes a sampler like this one, which a sharded loader has inside."""
    sampler = (sampler, *samplers(sampler))[-1]
    known = type(sampler) in (RandomSampler, SequentialSampler) and getattr(sampler, "generator", None) is None
    return f"{type(sampler).__name__}(dataset)" if known else "loader.sampler"
