"""A run that continues with fewer processes, and then with more, ends like an undisturbed one, wherever it stops."""

import signal
import warnings
from functools import partial

import pytest
import torch
from fit_callbacks import CheckpointSaver
from fit_core import Callback, Runner
from fit_distributed import parallel, shard, world_size
from processes import on_two_processes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.timeout(120)

STOPS = [4, 6, 8, 9, 10, 18]
"""Batches before the first stop, and before the next. An epoch has 6 to train, and in validation 3 on each of two
processes, or 6 on one. So the stops are inside an epoch, in validation, and between two epochs.
"""


class Stop(Callback):
    """Stops the run after a number of batches, and in validation after the epoch, or by a signal in validation too."""

    def __init__(self, after=0, by_signal=False):
        self.after, self.by_signal, self.batches = after, by_signal, 0

    def on_batch_end(self, state):
        self.batches += 1
        if self.batches == self.after and self.by_signal:
            signal.raise_signal(signal.SIGTERM)
        elif self.batches == self.after:
            state.should_stop = True


def train(folder, stop):
    """Train on batches of 4 samples, on all processes together. Return the weights and the validation losses."""
    torch.manual_seed(0)
    inputs = torch.randn(24, 5, dtype=torch.float64)
    data = TensorDataset(inputs, inputs[:, :1] ** 2)
    model = parallel(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    callbacks = [CheckpointSaver(folder, every_steps=1, resume="auto"), stop]
    runner = Runner(model, optimizer, nn.MSELoss(), callbacks=callbacks)
    train_loader = shard(DataLoader(data, 4 // world_size(), shuffle=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other number of processes
        try:
            history = runner.fit(train_loader, epochs=4, val_loader=shard(DataLoader(data, 4)))
        except SystemExit:
            return None
    if runner.state.status == "interrupted":
        return None
    weights = [value for parameter in model.parameters() for value in parameter.flatten().tolist()]
    return torch.tensor([*weights, *(row["val/loss"] for row in history)])


def on_rank(rank, folder, stop):
    return train(folder, stop)


def on_both(folder, stops):
    """Train on two processes in the folder of each stop."""
    cases = {name: partial(on_rank, folder=folder / str(name), stop=stop) for name, stop in stops.items()}
    return on_two_processes(cases, folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The weights and losses on rank 0 in the end, by the number of batches before the first stop."""
    folder = tmp_path_factory.mktemp("runs")
    on_both(folder, {number: Stop(number) for number in STOPS})
    for number in STOPS:
        assert train(folder / str(number), Stop(number, by_signal=True)) is None
    return {number: first for number, (first, _) in on_both(folder, {number: Stop() for number in STOPS}).items()}


@pytest.mark.parametrize("number", STOPS)
def test_two_processes_and_one_and_two_again(results, tmp_path, number):
    torch.testing.assert_close(results[number], train(tmp_path, Stop()), rtol=0, atol=1e-12)
