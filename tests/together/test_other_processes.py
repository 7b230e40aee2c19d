"""A run that is resumed on another number of processes has each sample of its epoch once, and its steps."""

import os
import warnings
from functools import partial

import pytest
import torch
from fit_callbacks import CheckpointSaver, LRScheduler
from fit_core import Callback, Runner
from fit_distributed import shard
from processes import on_two_processes
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.timeout(120)


class Seen(Callback):
    """Notes the samples of each epoch, and stops after a number of batches."""

    def __init__(self, stop_after):
        self.left, self.epochs = stop_after, {}

    def on_batch_end(self, state):
        self.epochs.setdefault(state.epoch, []).extend(state.input.flatten().int().tolist())
        self.left -= 1
        state.should_stop = self.left == 0


def train(folder, batch_size, stop_after=0):
    torch.manual_seed(int(os.environ.get("RANK", 0)) + stop_after)
    samples = torch.arange(48.0).view(48, 1)
    model = nn.Linear(1, 1)
    if torch.distributed.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    runner = Runner(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-6),
        nn.MSELoss(),
        callbacks=[
            seen := Seen(stop_after),
            LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 1e-6, total_steps=steps + 1)),
            CheckpointSaver(folder, resume="auto"),
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.fit(shard(DataLoader(TensorDataset(samples, samples), batch_size, shuffle=True)), epochs=2)
    return seen.epochs, runner.state.global_step, runner.state.samples_seen


def on_rank(rank, **arguments):
    os.environ["RANK"] = str(rank)
    return train(**arguments)


FROM_TWO = [((2, 4), 5), ((4, 4), 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder):
    return [train(folder / "one", 4, 6)]


@pytest.fixture(scope="module")
def ranks(folder, alone):
    """The results of both ranks: of runs that one process resumes, and of the run that one process has begun."""
    cases = {"one": partial(on_rank, folder=folder / "one", batch_size=4)}
    for (size, _), stop_after in FROM_TWO:
        arguments = {"folder": folder / f"two-{size}", "batch_size": size, "stop_after": stop_after}
        cases["two", size] = partial(on_rank, **arguments)
    return on_two_processes(cases, folder)


def together(results, epoch):
    return [sample for epochs, _, _ in results for sample in epochs.get(epoch, [])]


@pytest.mark.parametrize(("sizes", "stop_after"), FROM_TWO)
def test_from_two_processes_to_one(ranks, folder, sizes, stop_after):
    before, after = sizes
    first = ranks["two", before]
    second = [train(folder / f"two-{before}", after)]
    assert sorted(together(first, 0) + together(second, 0)) == list(range(48))
    assert sorted(together(second, 1)) == list(range(48))
    assert second[0][1:] == (stop_after + (48 - 2 * before * stop_after) // after + 48 // after, 96)


def test_from_one_process_to_two(alone, ranks):
    first, second = alone, ranks["one"]
    assert sorted(together(first, 0) + together(second, 0)) == list(range(48))
    assert sorted(together(second, 1)) == list(range(48))
    assert [result[1:] for result in second] == [(6 + 3 + 6, 96)] * 2
