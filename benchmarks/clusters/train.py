"""Train a small model on as many processes as there are, and write what the run has come to into this folder.

Every scheduler starts this program. The global batch has the same size on any number of processes, so each run has to
end with the weights of a single process.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver
from fit_core import Callback, Runner, RunnerState
from fit_distributed import is_main, launch, parallel, rank, shard, world_size
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10  # of 12 steps
BATCH = 8  # on all processes together


class Progress(Callback):
    """Note each start, each step and the id of each process, so that a fault can strike, and keep the pace."""

    def on_begin(self, state: RunnerState) -> None:
        write(f"worker-{rank()}", f"{os.getpid()}")
        with open("begun", "a") as file:
            file.write(f"rank {rank()} of {world_size()} from step {state.global_step}\n")

    def on_batch_end(self, state: RunnerState) -> None:
        if rank() == 1 and Path("fail").exists():
            raise RuntimeError("a fault on rank 1")
        time.sleep(float(os.environ.get("PACE", "0.02")))
        if is_main() and state.is_train:
            write("step", str(state.global_step))


def write(name: str, text: str) -> None:
    """Write a file that nobody sees half written."""
    part = Path(f"{name}.part")
    part.write_text(text)
    part.replace(name)


def train() -> None:
    """Train, or resume."""
    torch.manual_seed(0)
    inputs = torch.randn(96, 6, dtype=torch.float64)
    dataset = TensorDataset(inputs, inputs[:, :3] ** 2)
    model = parallel(nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    callbacks = [CheckpointSaver("run", every_steps=5, resume="auto"), Progress()]
    train_loader = shard(DataLoader(dataset, BATCH // world_size(), shuffle=True))
    val_loader = shard(DataLoader(dataset, 7))
    runner = Runner(model, optimizer, nn.MSELoss(), callbacks=callbacks)
    history = runner.fit(train_loader, epochs=EPOCHS, val_loader=val_loader)
    if is_main():
        weights = [value for tensor in model.state_dict().values() for value in tensor.flatten().tolist()]
        write("result.json", json.dumps([*weights, *(row["val/loss"] for row in history)]))


if __name__ == "__main__":
    if "HEAD" in os.environ:  # a launch on each of two hosts
        launch(train, nproc=1, nnodes=2, rdzv=f"{os.environ['HEAD']}:29400", max_restarts=3, timeout=60)
    else:
        launch(train, max_restarts=3, timeout=60)
