"""A small classifier with all that is random in a run: augmentation, dropout, shuffling, callbacks that draw."""

import hashlib
import random

import numpy as np
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler


class Augmented(Dataset):
    """Samples that are never twice the same: noise of torch, NumPy and Python."""

    def __init__(self, size=11):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        noise = torch.randn(4) + float(np.random.rand()) + random.random()
        return noise + index, torch.tensor(index % 3)


class DrawsAtItsEnd(Sampler):
    """A sampler that draws a number after its last index."""

    def __len__(self):
        return 12

    def __iter__(self):
        yield from torch.randperm(12).tolist()
        torch.rand(1)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(4), torch.randint(3, ())


class Finite(IterableDataset):
    def __iter__(self):
        for _ in range(11):
            yield torch.randn(4), torch.randint(3, ())


class Schedule(Callback):
    """Steps a scheduler each optimizer step and draws a number at every hook it can."""

    def on_begin(self, state):
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(state.optimizer, 0.97)

    def on_epoch_begin(self, state):
        torch.rand(1)

    def on_loader_begin(self, state):
        random.random()

    def on_batch_end(self, state):
        if state.is_optimizer_step:
            self.scheduler.step()

    def on_epoch_end(self, state):
        self.scheduler.step()
        np.random.rand()

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict):
        self.scheduler.load_state_dict(state_dict)


def correct(output, target):
    return (output.argmax(1) == target).double().mean()


def loaders(kind, workers):
    options = {"batch_size": 3, "num_workers": workers}
    train = {
        "shuffled": lambda: DataLoader(Augmented(), shuffle=True, **options),
        "generator": lambda: DataLoader(
            Augmented(), shuffle=True, generator=torch.Generator().manual_seed(5), **options
        ),
        "generator, whole batches": lambda: DataLoader(
            Augmented(12), shuffle=True, generator=torch.Generator().manual_seed(5), **options
        ),
        "draws at its end": lambda: DataLoader(Augmented(12), sampler=DrawsAtItsEnd(), **options),
        "iterable": lambda: DataLoader(Finite(), **options),
        "endless": lambda: DataLoader(Endless(), **options),
    }[kind]()
    return train, DataLoader(Augmented(), batch_size=4, generator=train.generator)


def make(callbacks=(), **options):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), [correct], callbacks, **options)


def fingerprint(runner):
    state = runner.state.state_dict()
    digest = hashlib.sha256()
    buffers = [state["model"], state["optimizer"]["state"], state["grad_scaler"], state["callbacks"], state["history"]]
    digest.update(repr([_plain(part) for part in buffers]).encode())
    digest.update(repr((state["epoch"], state["global_step"], state["samples_seen"])).encode())
    return digest.hexdigest()


def _plain(value):
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


class Stateful:
    """A loader that restores itself and refuses to be read twice, as StatefulDataLoader would be slow to."""

    def __init__(self):
        self.place = 0
        self.given = []

    def __len__(self):
        return 4

    def __iter__(self):
        while self.place < 4:
            self.place += 1
            self.given.append(self.place)
            yield torch.full((2, 4), float(self.place)) + torch.randn(2, 4), torch.tensor([0, self.place % 3])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state_dict):
        self.place = state_dict["place"]
