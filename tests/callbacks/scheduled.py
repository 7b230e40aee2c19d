"""Runs whose parameter groups have learning rates of their own."""

import torch
from fit_core import Runner
from scene import Snapshots, flat, network
from torch import nn


def lrs_of(state):
    return [group["lr"] for group in state.optimizer.param_groups]


def two_groups(*callbacks, lrs=(1e-4, 1e-2), **options):
    """A run whose body and head have learning rates of their own."""
    model = network()
    parts = ([*model[0].parameters(), *model[1].parameters()], model[4].parameters())
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts, lrs, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), (), callbacks, **options)


def saved_at_each_point(run):
    """The snapshots of a run, and its last state."""
    snapshots = Snapshots()
    runner = run([snapshots])
    return snapshots.saved, everything(runner)


def everything(runner):
    return flat({name: value for name, value in runner.state.state_dict().items() if name != "settings"})


def lrs_of_optimizer(optimizer):
    return [group["lr"] for group in optimizer.param_groups]
