"""A small run that tests share, and what looks at its states."""

import io

import torch
from fit_core import Callback, Runner
from fit_core.testing.values import flat  # noqa: F401
from torch import nn


def batches(sizes=(8, 8, 8, 8, 5), seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 6, generator=generator), torch.randint(classes, (n,), generator=generator)) for n in sizes]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def accuracy(output, target):
    """A metric. Targets are classes, or mixed ones."""
    return (output.argmax(1) == (target.argmax(1) if target.dim() == output.dim() else target)).double().mean()


def make(*callbacks, model=None, lr=0.1, metrics=(), **options):
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), metrics, callbacks, **options)


class Matrix:
    """A confusion matrix of three classes, as a metric."""

    name = "ConfusionMatrix"

    def __init__(self):
        self.reset()

    def reset(self):
        self.counts = torch.zeros(3, 3, dtype=torch.long)

    def update(self, output, target):
        if target is None:
            return
        true = target.argmax(1) if target.dim() == output.dim() else target
        self.counts.view(-1).index_add_(0, true * 3 + output.argmax(1), torch.ones_like(true))

    def compute(self):
        return self.counts

    def all_reduce(self):
        torch.distributed.all_reduce(self.counts)

    def state_dict(self):
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state_dict):
        self.counts = state_dict["counts"].clone()


class Watch(Callback):
    """Notes what a function of the state gives, at one hook."""

    def __init__(self, hook, function):
        self.seen = []
        setattr(self, hook, lambda state: self.seen.append(function(state)))


class Snapshots(Callback):
    """Keeps the whole state at each point where it is exact, as bytes that plain torch can read."""

    def __init__(self):
        self.saved = []

    def on_checkpoint(self, state):
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        self.saved.append(buffer.getvalue())


def load(saved):
    return torch.load(io.BytesIO(saved), weights_only=True)


def same(model, other):
    """Return whether two models have the same weights and buffers, bit for bit."""
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def lr_of(state):
    return state.optimizer.param_groups[0]["lr"]


class Logs(Callback):
    """Puts given values into the logs, one per epoch."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_end(self, state):
        for name, values in self.values.items():
            state.logs[name] = values[state.epoch]
