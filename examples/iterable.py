"""Train on a stream of lines, an IterableDataset. Stop mid-epoch, and resume with the same weights, bit for bit.

A stream does not have a length, so `steps_per_epoch` says how many batches make an epoch. The stream continues from
epoch to epoch and starts over at its end. A resumed run starts the pass again from the same random state and drops the
batches that were used, so it reads at most one pass again. The shuffle buffer draws from its own generator, seeded at
the start of the pass. The global generator would not do: dropout draws from it too, but not for dropped batches.
Measured: the same hash of the weights and the same history, without workers and with two.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from fit_core import Callback, Runner, RunnerState
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Lines(IterableDataset):
    """Read images and classes from a file, one digit per line, and shuffle them in a buffer. Workers share the file."""

    def __init__(self, path: Path, buffer_size: int = 300) -> None:
        self.path, self.buffer_size = path, buffer_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        order = torch.Generator().manual_seed(seed)
        buffer: list[str] = []
        with self.path.open() as lines:
            for number, line in enumerate(lines):
                if number % workers == mine:
                    buffer.append(line)
                if len(buffer) > self.buffer_size:
                    yield self.parse(buffer.pop(int(torch.randint(len(buffer), (), generator=order))))
        for index in torch.randperm(len(buffer), generator=order).tolist():
            yield self.parse(buffer[index])

    @staticmethod
    def parse(line: str) -> tuple[Tensor, Tensor]:
        *pixels, digit = map(float, line.split())
        return torch.tensor(pixels) / 16, torch.tensor(int(digit))


class StopAt(Callback):
    """Stop the run after an optimizer step, mid-epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, state: RunnerState) -> None:
        state.should_stop = state.global_step == self.step


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean()


def make(seed: int, *callbacks: Callback) -> Runner:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    return Runner(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss(), [accuracy], callbacks)


def digest(runner: Runner) -> str:
    tensors = runner.state.model.state_dict().values()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=12, help="epochs of 40 batches of 32 (default: 12)")
    parser.add_argument("--stop", type=int, default=190, help="the step to stop at (default: 190)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read the file (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file, saved = Path(folder, "digits.txt"), Path(folder, "state.pt")
        digits = load_digits()
        numpy.savetxt(file, numpy.column_stack([digits.data, digits.target]), fmt="%d")

        def loader() -> DataLoader:
            return DataLoader(Lines(file), batch_size=32, num_workers=arguments.workers)

        whole = make(0)
        history = whole.fit(loader(), epochs=arguments.epochs, steps_per_epoch=40)
        print(f"undisturbed  {digest(whole)}  train accuracy {history[-1]['train/accuracy']:.1%}")

        stopped = make(0, StopAt(arguments.stop))
        stopped.fit(loader(), epochs=arguments.epochs, steps_per_epoch=40)
        torch.save(stopped.state.state_dict(), saved)
        print(f"stopped      {digest(stopped)}  in step {stopped.state.global_step}")

        resumed = make(1)  # With another seed: everything that matters comes from the file.
        resumed.state.load_state_dict(torch.load(saved, weights_only=True))
        again = resumed.fit(loader(), epochs=arguments.epochs, steps_per_epoch=40)
        print(f"resumed      {digest(resumed)}  train accuracy {again[-1]['train/accuracy']:.1%}")
    same = digest(resumed) == digest(whole) and again == history
    print("the same bits" if same else "DIFFERENT")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
