"""Define the models of the benchmarks, with loss, optimizer and the batches of an epoch."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Work:
    """One work, the same for every contestant: the seed is set before it is made."""

    model: nn.Module
    loader: Iterable
    optimizer: str = "SGD"
    lr: float = 0.1
    criterion: nn.Module | None = None
    test: tuple | None = None
    validates: bool = False

    def __post_init__(self):
        self.criterion = self.criterion or nn.CrossEntropyLoss()

    def make_optimizer(self):
        return getattr(torch.optim, self.optimizer)(self.model.parameters(), lr=self.lr)


class Shuffled:
    """Batches of tensors in memory, in another order each epoch."""

    def __init__(self, input, target, size):
        self.input, self.target, self.size = input, target, size
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.input) // self.size

    def __iter__(self):
        order = torch.randperm(len(self.input), generator=self.generator)
        for index in order.split(self.size)[: len(self)]:
            yield self.input[index], self.target[index]


class Block(nn.Module):
    """A transformer layer with its normalization first."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, length, width = x.shape
        three = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*three)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Mean(nn.Module):
    """Average over the tokens."""

    def forward(self, x):
        return x.mean(1)


def mlp():
    """MLP 32-64-10, batch 32, SGD."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    return Work(model, [(torch.randn(32, 32), torch.randint(10, (32,))) for _ in range(1000)])


def conv():
    """Convolutions 1-8-16 and a linear layer on 16x16 images, batch 32, SGD."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 4 * 4, 10)),
    )
    return Work(model, [(torch.randn(32, 1, 16, 16), torch.randint(10, (32,))) for _ in range(300)])


def attention():
    """One transformer layer of width 64 with 4 heads, over 32 tokens, batch 16, SGD."""
    model = nn.Sequential(nn.Linear(16, 64), Block(64, 4), Mean(), nn.Linear(64, 10))
    return Work(model, [(torch.randn(16, 32, 16), torch.randint(10, (16,))) for _ in range(200)])


def mnist1d():
    """MNIST-1D with the convolutional network of its paper, batch 100, Adam, until 91% of the test set are right."""
    from mnist1d.data import get_dataset_args, make_dataset

    data = make_dataset(get_dataset_args())
    x, y, x_test, y_test = (torch.as_tensor(data[name]) for name in ("x", "y", "x_test", "y_test"))
    model = nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        *(nn.Conv1d(1, 25, 5, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(25, 25, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(25, 25, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(125, 10)),
    )
    loader = Shuffled(x.float(), y.long(), 100)
    return Work(model, loader, "Adam", 1e-2, test=(x_test.float(), y_test.long()))


def thousand():
    """1000 parameter tensors: 500 linear layers 8-8, batch 32, SGD."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(500)))
    return Work(model, [(torch.randn(32, 8), torch.randint(8, (32,))) for _ in range(20)], lr=1e-3)


def big():
    """A model of 500 MB: a linear layer 11180-11180, batch 4, SGD."""
    model = nn.Linear(11180, 11180, bias=False)
    return Work(model, [(torch.randn(4, 11180), torch.randint(11180, (4,))) for _ in range(4)], lr=1e-3)


def workers():
    """The MLP, fed by a DataLoader with two workers."""
    data = torch.utils.data.TensorDataset(torch.randn(9600, 32), torch.randint(10, (9600,)))
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
    return Work(mlp().model, loader)


def single():
    """The MLP on one batch per epoch, as graphs and physics have it."""
    return Work(mlp().model, mlp().loader[:1])


def single_validated():
    """The same, with one batch to validate on."""
    return Work(mlp().model, mlp().loader[:1], validates=True)


WORKS = {
    work.__name__: work for work in (mlp, conv, attention, mnist1d, thousand, big, workers, single, single_validated)
}
