"""Train on two processes and kill one of them again and again. `launch` restarts them, and the weights are the same.

A separate process sends SIGKILL to a worker at random moments. After each kill, both workers are restarted and resume
from the last checkpoint.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver, ModelEma
from fit_core import Callback, Runner
from fit_distributed import is_main, launch, parallel, rank, shard
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Hello(Callback):
    """Write the id of this process to a file, where the killer finds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_batch_end(self, state):
        (self.folder / f"worker-{state.rank}").write_text(f"{os.getpid()} {state.global_step}")


def train(folder: Path, epochs: int) -> str:
    """Train as usual, and return a hash of the weights and of their average."""
    torch.manual_seed(rank())
    digits = load_digits()
    dataset = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    model = parallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)))
    ema = ModelEma(0.99)
    saver = CheckpointSaver(folder, every_steps=5, resume="auto")
    optimizer = torch.optim.Adam(model.parameters())
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=[ema, saver, Hello(folder)])
    runner.fit(shard(loader), epochs=epochs)
    if is_main():
        print(f"trained to step {runner.state.global_step}")
    tensors = [*runner.state.state_dict()["model"].values(), *ema.model.state_dict().values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def kill_workers(folder: Path, kills: int) -> None:
    """Kill a worker, wait until the new workers train, and repeat."""
    killed = set()
    for number in range(kills):
        victim = folder / f"worker-{random.randrange(2)}"
        while not victim.exists() or victim.read_text().split(" ")[0] in {"", *killed}:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        worker, step = victim.read_text().split() or (None, None)
        if worker is None or worker in killed:
            continue
        killed |= {path.read_text().split(" ")[0] for path in folder.glob("worker-*")}
        try:
            os.kill(int(worker), signal.SIGKILL)
            print(f"kill -9, number {number + 1}: {victim.name} in step {step}", flush=True)
        except ProcessLookupError:
            print("the run was over before the next kill", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=3, help="how often to kill a worker (default: 3)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the run, of 57 batches (default: 6)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gold, survivor = Path(folder, "undisturbed"), Path(folder, "survivor")
        gold.mkdir()
        survivor.mkdir()
        expected = launch(train, gold, arguments.epochs, nproc=2)
        killer = multiprocessing.get_context("spawn").Process(target=kill_workers, args=(survivor, arguments.kills))
        killer.start()
        hashes = launch(train, survivor, arguments.epochs, nproc=2, max_restarts=arguments.kills)
        killer.terminate()
        killer.join()
    print(f"undisturbed {expected[0][:16]}\nsurvived    {hashes[0][:16]}")
    print("the same bits" if hashes == expected else "DIFFERENT")
    raise SystemExit(hashes != expected)


if __name__ == "__main__":
    main()
