"""Classify the two arms of a spiral with fit-core alone: a model, an optimizer, a loss and `fit`.

Seeded. It prints the accuracy on 1000 points that were not trained on: 100.0% after 20 epochs on a CPU.
"""

import argparse

import torch
from fit_core import Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def spiral(count: int) -> TensorDataset:
    """Return `count` points of a spiral, shape `(count, 2)`, and the arm of each, 0 or 1."""
    angle = 9 * torch.rand(count).sqrt()
    arm = torch.randint(2, (count,))
    turned = angle + torch.pi * arm
    points = torch.stack([turned.cos(), turned.sin()], dim=1) * angle[:, None] / 3
    return TensorDataset(points + 0.05 * torch.randn(count, 2), arm)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes over the 2000 training points (default: 20)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_loader = DataLoader(spiral(2000), batch_size=50, shuffle=True)
    val_loader = DataLoader(spiral(1000), batch_size=500)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), metrics=[accuracy])
    history = runner.fit(train_loader, epochs=arguments.epochs, val_loader=val_loader)
    print(f"validation accuracy {history[-1]['val/accuracy']:.1%} after {len(history)} epochs")


if __name__ == "__main__":
    main()
