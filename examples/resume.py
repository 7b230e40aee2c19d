"""Kill a training process at random moments, resume it each time, and compare the final weights bit for bit.

An undisturbed run comes first, and the killed run has to end with the same hash. The signal is SIGKILL, which a program
cannot catch, so nothing is saved at the moment of the kill.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver, LRScheduler, ModelEma
from fit_core import Callback, Runner
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset


class NoisyDigits(Dataset):
    """Add new noise to a digit each time it is read: augmentation that a resumed run has to repeat."""

    def __init__(self):
        digits = load_digits()
        self.images = torch.tensor(digits.data, dtype=torch.float32) / 16
        self.classes = torch.tensor(digits.target)

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(64), self.classes[index]


class Hello(Callback):
    """Print the step after each batch, for the parent process."""

    def on_batch_end(self, state):
        print(state.global_step, flush=True)


def train(folder: Path, epochs: int) -> None:
    """Train, or resume the interrupted run in the folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters())
    callbacks = [
        ModelEma(0.99),
        LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 1e-2, total_steps=steps + 1)),
        CheckpointSaver(folder, every_steps=5, resume="auto"),
        Hello(),
    ]
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=callbacks, accumulate_steps=2)
    runner.fit(DataLoader(NoisyDigits(), batch_size=32, shuffle=True), epochs=epochs)
    average = callbacks[0].model
    bits = b"".join(tensor.numpy().tobytes() for m in (model, average) for tensor in m.state_dict().values())
    (folder / "hash").write_text(hashlib.sha256(bits).hexdigest())


def start(folder: Path, epochs: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--train", str(folder), "--epochs", str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=5, help="how often to kill the run (default: 5)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the run, of 57 batches (default: 4)")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.epochs)
        return
    with tempfile.TemporaryDirectory() as folder:
        gold, killed = Path(folder, "undisturbed"), Path(folder, "killed")
        process = start(gold, arguments.epochs)
        process.communicate()
        print(f"undisturbed                  {(gold / 'hash').read_text()[:16]}")
        for number in range(arguments.kills):
            process = start(killed, arguments.epochs)
            last = 0
            for _ in range(random.randint(1, 57 * arguments.epochs // arguments.kills)):
                line = process.stdout.readline()
                last = int(line) if line.strip().isdigit() else last
            process.kill()
            process.communicate()
            print(f"kill -9, number {number + 1}, in step {last}")
        process = start(killed, arguments.epochs)
        process.communicate()
        hashes = [(path / "hash").read_text() for path in (gold, killed)]
        print(f"killed {arguments.kills} times, and resumed   {hashes[1][:16]}")
    print("the same bits" if hashes[0] == hashes[1] else "DIFFERENT")
    sys.exit(hashes[0] != hashes[1])


if __name__ == "__main__":
    main()
