"""Train the networks of the MNIST-1D paper, and print their test accuracy next to the paper's.

The data set, 4000 training and 1000 test signals of 40 points in ten classes, is generated on the spot. Networks and
settings are those of S. Greydanus and D. Kobak, "Scaling Down Deep Learning with MNIST-1D", ICML 2024: Adam at 1e-2,
batches of 100, 6000 steps. The learning rate, which the paper holds, warms up to 2e-2 and falls to 2e-3 here.

Ctrl-C saves the run, and the same command resumes it. Each network and number of steps has a folder of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver, ConsoleLogger, Phase, PhasesScheduler, TensorBoard, Timer, plot_history
from fit_core import History, Runner
from fit_distributed import launch, parallel, shard, world_size
from fit_metrics import Accuracy
from mnist1d.data import get_dataset_args, make_dataset
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

PAPER = {"linear": 0.32, "mlp": 0.68, "cnn": 0.94}


class Residual(nn.Sequential):
    """Add the input to the output of the layers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def network(name: str) -> nn.Module:
    """Return one of the paper's networks, from signals `(N, 40)` to scores `(N, 10)`."""
    if name == "linear":
        return nn.Linear(40, 10)
    if name == "mlp":
        hidden = Residual(nn.Linear(100, 100), nn.ReLU())
        return nn.Sequential(nn.Linear(40, 100), nn.ReLU(), hidden, nn.Linear(100, 10))
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
    for channels, kernel in ((1, 5), (25, 3), (25, 3)):
        layers += [nn.Conv1d(channels, 25, kernel, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(125, 10))


def loaders() -> tuple[DataLoader, DataLoader]:
    """Return training and test data. The batches of all processes together are the paper's."""
    data = make_dataset(get_dataset_args())

    def dataset(x: str, y: str) -> TensorDataset:
        return TensorDataset(torch.tensor(data[x], dtype=torch.float32), torch.tensor(data[y]))

    def batches(dataset: TensorDataset, order: type[RandomSampler | SequentialSampler], size: int) -> DataLoader:
        # Index the tensors once per batch. The usual way, sample by sample, costs more than a step of the small models.
        return DataLoader(dataset, batch_size=None, sampler=BatchSampler(order(dataset), size, drop_last=False))

    train, test = dataset("x", "y"), dataset("x_test", "y_test")
    return batches(train, RandomSampler, 100 // world_size()), batches(test, SequentialSampler, 1000)


def train(name: str, steps: int, folder: Path, fresh: bool) -> History:
    """Train a network in this process, which may be one of several, or resume the run in the folder."""
    torch.set_num_threads(1)  # Networks this small gain nothing from more, and lose much on a busy machine.
    torch.manual_seed(0)
    model = parallel(network(name))
    train_loader, test_loader = loaders()
    # An epoch here is 400 batches, ten passes over the small data set.
    per_epoch = min(400, steps)
    epochs = -(-steps // per_epoch)
    schedule = [Phase(0, 1, lr=(1e-3, 2e-2)), Phase(1, max(2, epochs), lr=(2e-2, 2e-3), mode="cos")]
    runner = Runner(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        nn.CrossEntropyLoss(),
        metrics=[Accuracy(1, 5)],
        callbacks=[
            Timer(),
            ConsoleLogger(),
            TensorBoard(folder),
            CheckpointSaver(folder, "val/Acc@1", "max", resume=False if fresh else "auto"),
            PhasesScheduler(schedule),
        ],
    )
    return runner.fit(shard(train_loader), epochs, steps_per_epoch=per_epoch, val_loader=shard(test_loader))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=PAPER, default="cnn", help="which network of the paper (default: cnn)")
    parser.add_argument("--steps", type=int, default=6000, help="training steps (default: 6000, as in the paper)")
    parser.add_argument("--nproc", type=int, default=1, help="processes to train on (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for results (default: runs/demo)")
    parser.add_argument("--fresh", action="store_true", help="start over, even if there is a run to resume")
    arguments = parser.parse_args()
    for name in ("steps", "nproc"):
        if getattr(arguments, name) < 1:
            parser.error(f"expected --{name} to be 1 or more, got {getattr(arguments, name)}")
    arguments.folder = arguments.out / f"{arguments.model}-{arguments.steps}"
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=arguments.folder).close()
    except OSError as error:
        parser.error(f"--out {arguments.out} cannot be written to: {error.strerror}")
    return arguments


def main() -> int:
    arguments = parse()
    folder = arguments.folder
    parameters = sum(parameter.numel() for parameter in network(arguments.model).parameters())
    print(f"MNIST-1D, {arguments.model} with {parameters} parameters, {arguments.steps} steps", flush=True)
    try:
        history = launch(train, arguments.model, arguments.steps, folder, arguments.fresh, nproc=arguments.nproc)[0]
    except KeyboardInterrupt:  # CheckpointSaver has said how to resume.
        return 130

    plot_history(history, folder / "curves.png")
    last, best = history[-1], max(row["val/Acc@1"] for row in history)
    print(
        f"\ntest accuracy {last['val/Acc@1']:.1%} (best epoch {best:.1%}, top 5 {last['val/Acc@5']:.1%}), "
        f"the paper: {PAPER[arguments.model]:.0%}\n"
        f"learning curves: {folder / 'curves.png'}\nTensorBoard: tensorboard --logdir {arguments.out}\n"
        f"checkpoints: python -m fit_callbacks.checkpoint {folder}\nto train again from scratch: add --fresh"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
