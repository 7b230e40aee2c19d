"""Carries a network from the digits 0 to 4 over to 5 to 9, of which it sees ten each; and trains one from scratch.

The body is frozen while the new head learns, then unfrozen and trained at a tenth of the head's learning rate. The
phases of the learning rate follow: one for the head alone, one for all.
"""

import argparse

import torch
from fit_callbacks import Phase, PhasesScheduler
from fit_core import Callback, Runner, RunnerState
from fit_metrics import Accuracy
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Freeze(Callback):
    """Holds a part of the model as it is until an epoch, counted from 0, then lets it train."""

    def __init__(self, part: nn.Module, until: int) -> None:
        self.part, self.until = part, until

    def on_epoch_begin(self, state: RunnerState) -> None:
        self.part.requires_grad_(state.epoch >= self.until)


def digits(first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``(N, 1, 8, 8)`` of the five digits from ``first``, and classes 0 to 4, in an order drawn at random."""
    data = load_digits()
    chosen = torch.randperm(len(data.target))
    chosen = chosen[(torch.tensor(data.target)[chosen] // 5) == first // 5]
    return torch.tensor(data.images, dtype=torch.float32)[chosen, None] / 16, torch.tensor(data.target)[chosen] - first


def new_body() -> nn.Sequential:
    convolutions = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU())


def fit(body: nn.Module, train: TensorDataset, test: TensorDataset, epochs: int, freeze: int = 0) -> float:
    """Train the body with a new head; the accuracy on the test digits."""
    model = nn.Sequential(body, nn.Linear(64, 5))
    optimizer = torch.optim.Adam([{"params": model[1].parameters()}, {"params": body.parameters()}])
    phases = [Phase(freeze, epochs, lr=(3e-3, 0), mode="cos")]
    if freeze:
        phases.insert(0, Phase(0, freeze, lr=3e-3))
    callbacks = [Freeze(body, freeze), PhasesScheduler(phases, factors=[1, 0.1 if freeze else 1])]
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), [Accuracy()], callbacks)
    loader = DataLoader(train, batch_size=10 if len(train) < 100 else 50, shuffle=True)
    return runner.fit(loader, epochs=epochs, val_loader=DataLoader(test, batch_size=500))[-1]["val/Acc@1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes over the fifty images (default: 20)")
    parser.add_argument("--draws", type=int, default=10, help="different fifty images to average over (default: 10)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, classes = digits(0)
    body = new_body()
    known = fit(body, TensorDataset(images[200:], classes[200:]), TensorDataset(images[:200], classes[:200]), epochs=10)
    print(f"digits 0 to 4: test accuracy {known:.1%}")

    weights = {name: value.clone() for name, value in body.state_dict().items()}
    accuracies: dict[str, list[float]] = {"from scratch": [], "fine-tuned": []}
    for _ in range(arguments.draws):
        images, classes = digits(5)
        few = torch.cat([(classes == number).nonzero()[:10, 0] for number in range(5)])
        rest = torch.ones(len(classes), dtype=torch.bool).index_fill(0, few, False)
        sets = TensorDataset(images[few], classes[few]), TensorDataset(images[rest], classes[rest])
        accuracies["from scratch"].append(fit(new_body(), *sets, arguments.epochs))
        body.load_state_dict(weights)
        accuracies["fine-tuned"].append(fit(body, *sets, arguments.epochs, freeze=max(1, arguments.epochs // 4)))
    for name, values in accuracies.items():
        mean, worst = sum(values) / len(values), min(values)
        print(f"digits 5 to 9, {name:<12}: test accuracy {mean:.1%} (worst draw {worst:.1%})")


if __name__ == "__main__":
    main()
