"""After parallel, processes with one seed draw different numbers, and their models are the same."""

import random

import numpy as np
import pytest
import torch
from fit_distributed import launch, parallel
from forked import forked
from torch import nn
from torch.utils.data import DataLoader, Dataset

pytestmark = pytest.mark.timeout(180)


class Noise(Dataset):
    """Samples that are random numbers, as an augmentation draws them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(())


def numbers():
    workers = torch.cat(list(DataLoader(Noise(), batch_size=2, num_workers=1))).tolist()
    return {
        "torch": torch.rand(3).tolist(),
        "python": [random.random() for _ in range(3)],
        "numpy": np.random.random(3).tolist(),
        "workers": workers,
    }


def seed():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def draw():
    seed()
    model = parallel(nn.Linear(2, 2))
    first = numbers()
    parallel(nn.Linear(2, 2))
    return model.module.weight.tolist(), first, numbers()


@pytest.fixture(scope="module")
def runs():
    with forked():
        return [launch(draw, nproc=2, backend="gloo", timeout=60) for _ in range(2)]


def test_ranks_draw_different_numbers_and_rank_0_what_one_process_draws(runs):
    (weight, *drawn), (other_weight, *other_drawn) = runs[0]
    assert weight == other_weight
    for here, there in zip(drawn, other_drawn, strict=True):
        for name in here:
            assert set(here[name]).isdisjoint(there[name]), name
    for name in other_drawn[0]:  # a second model does not rewind the generators
        assert set(other_drawn[0][name]).isdisjoint(other_drawn[1][name]), name
    seed()
    nn.Linear(2, 2)
    assert drawn[0] == numbers()


def test_the_numbers_are_the_same_in_each_run(runs):
    assert runs[0] == runs[1]
