"""Nothing adds up over many epochs, runs and evaluations: objects, threads, files and child processes."""

import gc
import os
import time
from collections import Counter
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from fit_callbacks import (
    CheckpointSaver,
    ConsoleLogger,
    FileLogger,
    GradientClipping,
    LRScheduler,
    ModelEma,
    TensorBoard,
)
from fit_core import Callback, Runner
from processes import on_two_processes
from scene import accuracy
from torch import nn
from torch.multiprocessing.reductions import shared_cache
from torch.utils.data import DataLoader, TensorDataset
from whole import whole

pytestmark = [
    whole,
    pytest.mark.timeout(500),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts by /proc"),
]


class Use(dict):
    """Return what this process uses now. The first one leaves some objects itself."""

    def __init__(self):
        gc.collect()
        shared_cache.free_dead_references()  # torch drops what came from workers later
        tasks = list(Path("/proc/self/task").iterdir())
        objects = gc.get_objects()
        super().__init__(
            threads=len(tasks),
            files=len(os.listdir("/proc/self/fd")),
            children=sum(len((task / "children").read_text().split()) for task in tasks if task.exists()),
            tensors=sum(issubclass(type(thing), torch.Tensor) for thing in objects),
            objects=len(objects),
        )
        self.kinds = Counter(type(thing).__name__ for thing in objects)
        del objects

    def wait_for_threads(self):
        """Wait for threads that are about to end."""
        deadline = time.monotonic() + 20
        while len(os.listdir("/proc/self/task")) > self["threads"] and time.monotonic() < deadline:
            time.sleep(0.1)

    def growth(self, later):
        """Return what has grown meanwhile."""
        return {name: later[name] - self[name] for name in self if later[name] > self[name]}


class Watch(Callback):
    """Notes the use at two epochs."""

    def __init__(self, *epochs):
        self.epochs, self.seen = epochs, []

    def on_epoch_begin(self, state):
        if state.epoch in self.epochs:
            self.seen.append(Use())


def loader(workers=0):
    data = TensorDataset(torch.ones(8, 4), torch.zeros(8).long())
    return DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)


def everything(folder, *callbacks, wrap=lambda model: model, **options):
    model = wrap(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watching = [ConsoleLogger(), TensorBoard(folder / "board"), FileLogger(folder / "log.csv")]
    saver = CheckpointSaver(folder / "saved", **options)
    changing = [ModelEma(0.9), GradientClipping(1.0), LRScheduler(lambda o, n: torch.optim.lr_scheduler.StepLR(o, 5))]
    return Runner(model, optimizer, nn.CrossEntropyLoss(), [accuracy], [*watching, saver, *changing, *callbacks])


@pytest.mark.parametrize(("workers", "epochs"), [(0, 300), (1, 30)])
def test_epochs(tmp_path, workers, epochs):
    watch = Watch(0, epochs // 3, epochs - 1)
    with redirect_stdout(StringIO()):
        everything(tmp_path, watch).fit(loader(workers), epochs=epochs, val_loader=loader(workers))
    _, first, last = watch.seen
    grown = first.growth(last)
    # A row of the history per epoch, of which the last checkpoint has a copy.
    assert grown.pop("objects", 0) < 3 * (epochs - epochs // 3), last.kinds - first.kinds
    assert grown == {}


@pytest.mark.parametrize(("workers", "count"), [(0, 50), (1, 8)])
def test_fits(tmp_path, workers, count):
    uses = []
    for number in range(count):
        with redirect_stdout(StringIO()):
            everything(tmp_path / str(number), background=True).fit(
                loader(workers), epochs=1, val_loader=loader(workers)
            )
        if number in (0, count // 2, count - 1):
            uses.append(Use())
    _, first, last = uses
    grown = first.growth(last)
    assert grown.pop("objects", 0) < 40, last.kinds - first.kinds
    assert grown == {}


@pytest.mark.parametrize(("workers", "count"), [(0, 200), (1, 10)])
def test_evaluates(tmp_path, workers, count):
    with redirect_stdout(StringIO()):
        runner = everything(tmp_path)
        runner.fit(loader(), epochs=1)
        Use()
        uses = []
        for number in range(count):
            runner.evaluate(loader(workers))
            if number == count // 2:
                uses.append(Use())
        uses[0].wait_for_threads()
        uses.append(Use())
    grown = uses[0].growth(uses[1])
    assert grown.pop("objects", 0) < 40, uses[1].kinds - uses[0].kinds
    assert grown == {}


def fit_often(rank, folder):
    uses = []
    for number in range(12):
        with redirect_stdout(StringIO()):
            run = everything(folder / str(number), wrap=nn.parallel.DistributedDataParallel)
            run.fit(loader(), epochs=1, val_loader=loader())
        if number in (6, 11):
            uses.append(Use())
    return {name: number for name, number in uses[0].growth(uses[1]).items() if name in ("threads", "files")}


def test_fits_in_two_processes_close_their_connections(tmp_path):
    assert on_two_processes({"fits": partial(fit_often, folder=tmp_path / "runs")}, tmp_path)["fits"] == ({}, {})
