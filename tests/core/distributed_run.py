"""A run in double precision whose samples are split over processes."""

import torch
from fit_core import Runner
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def samples(count):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 4, generator=generator, dtype=torch.float64),
        torch.randint(3, (count,), generator=generator),
    )


def accuracy(output, target):
    return (output.argmax(1) == target).double().mean()


def runner(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), [accuracy], **options)


def split(count, batch, rank=0, world=1):
    inputs, targets = (part[rank::world] for part in samples(count))
    return list(zip(inputs.split(batch), targets.split(batch), strict=True)) if len(inputs) else []
