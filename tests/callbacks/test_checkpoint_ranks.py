"""Two processes agree on what is saved, and both learn what could not be."""

from functools import partial

import fit_callbacks.checkpoint.commit
import pytest
from fit_callbacks import CheckpointError, CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_core import Callback
from processes import on_two_processes
from scene import batches, make
from torch import nn

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    """The results of both ranks, by case."""
    cases = {"nan": partial(nan_on_rank_1, folder=folder / "nan")}
    for background in (False, True):
        cases["full", background] = partial(full_disk, folder=folder / f"full-{background}", background=background)
    return on_two_processes(cases, folder)


def full_disk(rank, folder, background):
    def fail(content, part):
        raise OSError(28, "No space left on device")

    fit_callbacks.checkpoint.commit.write = fail  # for the rest of this process
    model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
    try:
        make(CheckpointSaver(folder, background=background), model=model).fit(batches(), epochs=2)
    except CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("background", [False, True])
def test_every_process_learns_that_the_disk_is_full(ranks, background):
    first, second = ranks["full", background]
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


def test_a_nan_on_one_process_is_not_saved(ranks, folder):
    assert ranks["nan"] == (True, True)
    saved = read(folder / "nan" / "last.pt")
    assert saved["epoch"] == 1
    assert len(saved["ranks"]) == 2
