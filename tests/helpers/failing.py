"""Functions for launches that fail."""

import multiprocessing
import os
import time

import pytest
import torch
from fit_core import Callback, Runner
from fit_distributed import LaunchError, barrier, device, is_main, launch, local_rank, parallel, rank, world_size
from forked import forked
from torch import nn


def place(greeting, *, to):
    print(f"{greeting} from {rank()}")
    os.write(2, f"{to} on {rank()}\n".encode())
    barrier()
    where = (rank(), world_size(), local_rank(), is_main(), str(device()), os.environ["OMP_NUM_THREADS"])
    return where, torch.full((3,), rank()), torch.distributed.get_backend(), multiprocessing.get_start_method()


# How a launch fails.


class Fail(Callback):
    """Does `deed()` on one rank at a place in the run."""

    def __init__(self, place, guilty, deed):
        self.place, self.guilty, self.deed = place, guilty, deed

    def on_batch_end(self, state):
        if self.place == ("training" if state.is_train else "validation"):
            self._fail(state)

    def on_epoch_end(self, state):
        if self.place == "callback":
            self._fail(state)

    def on_checkpoint(self, state):
        if self.place == "save":
            self._fail(state)

    def _fail(self, state):
        if state.rank == self.guilty and state.batch_idx >= 1:
            self.deed()


def boom():
    raise ValueError("boom")


def train(place, guilty, deed):
    torch.manual_seed(0)
    model = parallel(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(3)]
    Runner(model, optimizer, nn.MSELoss(), callbacks=[Fail(place, guilty, deed)]).fit(batches, val_loader=batches)
    return "done"


def failed(*arguments, **options):
    begin = time.monotonic()
    with forked(), pytest.raises(LaunchError) as caught:
        launch(*arguments, nproc=2, backend="gloo", **options)
    assert not multiprocessing.active_children()
    return caught.value, time.monotonic() - begin


# What is refused before anything starts.


def never():
    raise AssertionError("it was started")
