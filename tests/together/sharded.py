"""A small model in double precision, sharded with fully_shard on several processes, and a run of it."""

import pytest
import torch
from fit_core import Runner
from fit_distributed import shard, world_size
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

needs_cpu_shards = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream(), "record_event"), reason="this torch shards on accelerators only"
)


def sharded(model, layers=None, **options):
    """Shard each layer and the rest of a model, if there are several processes."""
    if world_size() > 1:
        from torch.distributed.fsdp import fully_shard

        for part in (*(model.children() if layers is None else layers), model):
            if any(True for _ in part.parameters()):
                fully_shard(part, **options)
    return model


def plain_network(seed=0):
    """A model whose layers do not divide by the number of processes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 3)).double()


def network(seed=0, **options):
    """The same, sharded. Its head belongs to the root."""
    model = plain_network(seed)
    return sharded(model, [model[0]], **options)


def samples(count=44):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(3, (count,), generator=generator))


def loaders(count=44, val_count=21):
    """Loaders of 8 samples over all processes to train on, and of uneven parts to validate on."""
    torch.manual_seed(5)
    train = DataLoader(samples(count), batch_size=8 // world_size(), shuffle=True)
    return shard(train), shard(DataLoader(samples(val_count), batch_size=4))


def accuracy(output, target):
    return (output.argmax(1) == target).double().mean()


def runner(model, *callbacks, lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), [accuracy], callbacks, **options)


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def weights(model):
    return {name: whole(value) for name, value in model.state_dict().items()}
