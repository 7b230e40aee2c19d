"""A run that is resumed on another number of processes has each sample of its epoch once, and its steps."""

import os
import warnings

import pytest
import torch
import torch.multiprocessing as mp
from fit_callbacks import CheckpointSaver, LRScheduler
from fit_core import Callback, Runner
from fit_distributed import shard
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


def process(rank, store, folder, *arguments):
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(train(folder, *arguments), f"{store}-{rank}")
    torch.distributed.barrier()
    os._exit(0)


def on_two(tmp_path, *arguments):
    store = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
    mp.spawn(process, (str(store), str(tmp_path / "run"), *arguments), nprocs=2)
    return [torch.load(f"{store}-{rank}") for rank in range(2)]


def together(results, epoch):
    return [sample for epochs, _, _ in results for sample in epochs.get(epoch, [])]


@pytest.mark.parametrize(("sizes", "stop_after"), [((2, 4), 5), ((4, 4), 4)])
def test_from_two_processes_to_one(tmp_path, sizes, stop_after):
    before, after = sizes
    first = on_two(tmp_path, before, stop_after)
    second = [train(tmp_path / "run", after)]
    assert sorted(together(first, 0) + together(second, 0)) == list(range(48))
    assert sorted(together(second, 1)) == list(range(48))
    assert second[0][1:] == (stop_after + (48 - 2 * before * stop_after) // after + 48 // after, 96)


def test_from_one_process_to_two(tmp_path):
    first = [train(tmp_path / "run", 4, 6)]
    second = on_two(tmp_path, 4)
    assert sorted(together(first, 0) + together(second, 0)) == list(range(48))
    assert sorted(together(second, 1)) == list(range(48))
    assert [result[1:] for result in second] == [(6 + 3 + 6, 96)] * 2
