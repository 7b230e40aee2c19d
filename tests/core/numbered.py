"""Batches that are numbered, and a run that notes which of them come."""

import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


class Seen(Callback):
    """Notes which batches came, by their first number, and what the loop said of them."""

    def __init__(self):
        self.train, self.val, self.sizes = [], [], []

    def on_epoch_begin(self, state):
        self.train.append([])

    def on_loader_begin(self, state):
        self.sizes.append(state.num_batches)

    def on_batch_end(self, state):
        (self.train[-1] if state.is_train else self.val).append(int(state.input[0, 0]))


def numbered(count):
    return [(torch.full((2, 1), float(index)), torch.zeros(2, 1)) for index in range(count)]


def runner(**options):
    model = nn.Linear(1, 1)
    seen = Seen()
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), (), [seen], **options), seen


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (pair for pair in numbered(self.count))


def small_loader(samples, **options):
    return DataLoader(TensorDataset(torch.zeros(samples, 1), torch.zeros(samples, 1)), **options)
