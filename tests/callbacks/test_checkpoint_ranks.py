"""Two processes agree on what is saved, and both learn what could not be."""

import os

import fit_callbacks.checkpoint.saver
import pytest
import torch
import torch.multiprocessing as mp
from fit_callbacks import CheckpointError, CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import batches, make
from torch import nn

pytestmark = pytest.mark.timeout(120)


def on_rank(rank, folder, function, *arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(function(rank, f"{folder}/run", *arguments), f"{folder}/{rank}")
    torch.distributed.barrier()
    os._exit(0)


def on_two(folder, function, *arguments):
    mp.spawn(on_rank, (str(folder), function, *arguments), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


def full_disk(rank, folder, background):
    def fail(content, part):
        raise OSError(28, "No space left on device")

    fit_callbacks.checkpoint.saver.write = fail
    model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
    try:
        make(CheckpointSaver(folder, background=background), model=model).fit(batches(), epochs=2)
    except CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("background", [False, True])
def test_every_process_learns_that_the_disk_is_full(tmp_path, background):
    first, second = on_two(tmp_path, full_disk, background)
    assert "No space left on device" in first
    assert second == first


def nan_on_rank_1(rank, folder):
    class Spoil(Callback):
        def on_epoch_end(self, state):
            if rank == 1 and state.epoch == 1:
                state.model.module[1].running_mean.fill_(float("nan"))

    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    model = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    make(Spoil(), CheckpointSaver(folder), model=model).fit(batches(), epochs=3)
    return True


def test_a_nan_on_one_process_is_not_saved(tmp_path):
    assert on_two(tmp_path, nan_on_rank_1) == [True, True]
    saved = read(tmp_path / "run" / "last.pt")
    assert saved["epoch"] == 1
    assert len(saved["ranks"]) == 2
