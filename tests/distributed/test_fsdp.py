"""A model that the user has sharded with fully_shard trains in the Runner like any other."""

import pytest
import torch
from fit_core import Callback, Runner
from fit_distributed import launch, shard, world_size
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream(), "record_event"), reason="this torch shards on accelerators only"
    ),
]


class Clip(Callback):
    def on_before_step(self, state):
        self.norm = nn.utils.clip_grad_norm_(state.model.parameters(), 0.1)

    def on_epoch_end(self, state):
        state.logs["gradient norm"] = float(whole(self.norm))


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(accumulate_steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    if world_size() > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in (model[0], model[2], model):
            fully_shard(layer)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(44, 6, generator=generator, dtype=torch.float64)
    dataset = TensorDataset(inputs, torch.randint(3, (44,), generator=generator))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=[Clip()], accumulate_steps=accumulate_steps)
    torch.manual_seed(5)
    loader = DataLoader(dataset, batch_size=8 // world_size(), shuffle=True)
    # All take part in a forward pass, so that they need equally many batches to evaluate as well.
    history = runner.fit(shard(loader), epochs=3, val_loader=shard(DataLoader(dataset, batch_size=4), pad=True))
    return {name: whole(value) for name, value in model.state_dict().items()}, history


def train_twice():
    return [train(accumulate_steps) for accumulate_steps in (1, 4)]


def test_fully_sharded_training_equals_one_process():
    alone = launch(train_twice, nproc=1)[0]
    for results in launch(train_twice, nproc=2, backend="gloo", timeout=60):
        for (weights, history), (expected_weights, expected_history) in zip(results, alone, strict=True):
            for name, value in expected_weights.items():
                torch.testing.assert_close(weights[name], value, rtol=1e-12, atol=1e-12)
            for row, expected in zip(history, expected_history, strict=True):
                assert row == pytest.approx(expected, rel=1e-12)
