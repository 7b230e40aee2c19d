"""Two processes of fit_distributed that train with fit_core end alike, and evaluate each sample once."""

import pytest
import torch
from fit_core import Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

fit_distributed = pytest.importorskip("fit_distributed")


def loader(size, shuffle):
    generator = torch.Generator().manual_seed(size)
    data = TensorDataset(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator))
    return DataLoader(data, batch_size=4, shuffle=shuffle)


def runner(model):
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), accumulate_steps=2)


def train():
    torch.manual_seed(fit_distributed.rank())
    run = runner(fit_distributed.parallel(nn.Linear(3, 1)))
    val_loader = fit_distributed.shard(loader(9, shuffle=False))
    history = run.fit(fit_distributed.shard(loader(21, shuffle=True)), epochs=3, val_loader=val_loader)
    return run.state.state_dict()["model"], history, run.state.samples_seen, run.state.world_size


def test_a_run_in_two_processes():
    first, second = fit_distributed.launch(train, nproc=2)
    weights, history, samples, world_size = first
    assert all(torch.equal(weights[name], second[0][name]) for name in weights)
    assert first[1:] == second[1:]
    assert world_size == 2
    assert samples == 3 * 22  # 11 for each process, so that none waits
    model = nn.Linear(3, 1)
    model.load_state_dict(weights)
    alone = runner(model).evaluate(loader(9, shuffle=False))
    assert history[-1]["val/loss"] == pytest.approx(alone["val/loss"], rel=1e-6)
    assert history[-1]["val/loss"] < history[0]["val/loss"]
