"""A run for tests of optimizers."""

import torch
from fit_core import Callback, Runner
from scene import load
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def batches(sizes=(6, 6, 6, 4)):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def make(*callbacks, optimizer=sgd, model=None, runner=Runner, **options):
    model = model or network()
    return runner(model, optimizer(model), nn.CrossEntropyLoss(), (), callbacks, **options)


class Load(Callback):
    def __init__(self, saved):
        self.saved = saved

    def on_begin(self, state):
        state.load_state_dict(load(self.saved))
