"""Classify handwritten digits, once plain and once with augmentation in the dataset and Mixup as a callback.

The test set is the last 360 of scikit-learn's digits, the training set the 1437 before. Test accuracy after 30 epochs
on a CPU, the mean of three seeds: 96.7% plain, 98.1% with augmentation and Mixup.
"""

import argparse

import torch
from fit_callbacks import LRScheduler, Mixup
from fit_core import Runner
from fit_metrics import Accuracy
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """Provide images `(1, 8, 8)` and their classes. With `augment`, shift each image at random by up to a pixel."""

    def __init__(self, part: slice, augment: bool = False) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[part], dtype=torch.float32)[:, None] / 16
        self.classes = torch.tensor(digits.target[part])
        self.augment = augment

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.augment:
            top, left = torch.randint(3, (2,)).tolist()
            image = nn.functional.pad(image, (1, 1, 1, 1))[:, top : top + 8, left : left + 8]
        return image, self.classes[index]


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))


def train(epochs: int, augment: bool, seed: int) -> float:
    """Train, and return the accuracy on the test digits."""
    torch.manual_seed(seed)
    train_loader = DataLoader(Digits(slice(-360), augment), batch_size=64, shuffle=True)
    test_loader = DataLoader(Digits(slice(-360, None)), batch_size=360)
    model = network()
    callbacks = [LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 1e-2, total_steps=steps + 1))]
    if augment:
        callbacks.append(Mixup(num_classes=10, alpha=0.2))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), [Accuracy()], callbacks)
    runner.fit(train_loader, epochs=epochs)
    return runner.evaluate(test_loader)["val/Acc@1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training digits (default: 30)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0, to average over (default: 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for augment in (False, True):
        accuracies = [train(arguments.epochs, augment, seed) for seed in range(arguments.seeds)]
        mean, each = sum(accuracies) / len(accuracies), ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
        print(f"{'augmented and mixed' if augment else 'plain':<19}  test accuracy {mean:.1%} ({each})")


if __name__ == "__main__":
    main()
