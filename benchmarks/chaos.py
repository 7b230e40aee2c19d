"""Kill runs at random, damage their files, resume them, and compare the end with an undisturbed run.

`hatch run chaos --minutes 10 --seed 0`. Each run has everything switched on that makes resuming hard: loader workers,
augmentation by three random generators, an order by a fourth, dropout, batch norm, accumulation, a schedule, an average
of the weights, early stopping, TensorBoard, a log file and checkpoints, in float32, bf16 or fp16, in one process or in
two. It is interrupted up to four times and then left to finish. In the end its weights, optimizer, average, history,
rows and points must be those of the same run without faults, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fit_callbacks import CheckpointSaver, EarlyStopping, FileLogger, LRScheduler, ModelEma, TensorBoard
from fit_core import Callback, Runner, RunnerState
from fit_distributed import launch, parallel, rank, shard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

STEPS = 24
SIGNALS = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGHUP": 129}
FAULTS = ["kill", "kill a worker", *SIGNALS, "SIGTERM twice", "signal to all", "full disk"]
DAMAGES = ["none", "none", "none", "truncate", "flip a bit", "empty"]


# The run.


class Augmented(Dataset[Any]):
    """Samples to which noise from the generators of torch, NumPy and Python is added."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(96, 6, generator=generator)
        self.targets = torch.randint(3, (96,), generator=generator)

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(()) + random.random() + float(np.random.random())
        time.sleep(0.002)  # so that a fault meets it at work
        return self.inputs[index] + 0.01 * noise, self.targets[index]


class Count(Callback):
    """Adds a byte to a file after each batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_batch_end(self, state: RunnerState) -> None:
        if state.rank == 0:
            with self.path.open("ab") as file:
                file.write(b".")


def train(folder: str, workers: int, precision: str, background: bool, steps: int) -> None:
    """Train, or resume, and write what the run has come to."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3))
    model = parallel(layers)
    batch_size = 8 // int(os.environ.get("WORLD_SIZE", 1))
    generator = torch.Generator().manual_seed(4)
    train_loader = DataLoader(Augmented(1), batch_size, shuffle=True, num_workers=workers, generator=generator)
    val_loader = DataLoader(Augmented(2), 2 * batch_size, num_workers=workers)
    runner = Runner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        callbacks=[
            ModelEma(0.9),
            LRScheduler(lambda optimizer, total: OneCycleLR(optimizer, 0.2, total_steps=total + 1)),
            EarlyStopping("val/loss", patience=50),
            TensorBoard(f"{folder}/board", every=2),
            FileLogger(f"{folder}/log.csv"),
            Count(Path(folder, "batches")),
            CheckpointSaver(f"{folder}/run", every_steps=steps, keep=2, resume="auto", background=background),
        ],
        accumulate_steps=2,
        use_fp16=precision == "fp16",
        use_bf16=precision == "bf16",
    )
    runner.fit(shard(train_loader), epochs=STEPS // 6, val_loader=shard(val_loader))
    if rank() == 0:
        result = {"state": digest(runner.state.state_dict()), "rows": Path(folder, "log.csv").read_text()}
        Path(folder, "result.json").write_text(json.dumps({**result, "points": points(f"{folder}/board")}))


def digest(saved: dict[str, Any]) -> dict[str, str]:
    """Return a hash of each part of a state that two equal runs have in common."""

    def update(sha: Any, value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                sha.update(repr(key).encode())
                update(sha, value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                update(sha, part)
        elif isinstance(value, torch.Tensor):
            sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(value).encode())

    hashes = {}
    for name in ("model", "optimizer", "grad_scaler", "epoch", "global_step", "samples_seen", "history", "callbacks"):
        sha = hashlib.sha256()
        update(sha, saved[name])
        hashes[name] = sha.hexdigest()
    return hashes


def points(folder: str) -> dict[str, list[Any]]:
    """Return what TensorBoard shows: for each curve its steps and values."""
    board = EventAccumulator(folder, size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [[event.step, event.value] for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


# The campaign.


class Campaign:
    """Runs, their faults, and what became of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.golds: dict[str, Any] = {}
        self.faults: Counter[str] = Counter()
        self.lost: list[str] = []
        self.differing: list[str] = []
        self.runs = 0

    def one(self) -> None:
        """Make a run with faults, and compare it."""
        config = {
            "nproc": self.random.choice([1, 1, 1, 2]),
            "workers": self.random.choice([0, 2]),
            "precision": self.random.choice(["float32", "bf16", "fp16"]),
            "background": self.random.random() < 0.5,
            "steps": self.random.choice([1, 2, 5]),
        }
        folder = self.folder / f"run-{self.runs}"
        faults: list[str] = []
        self.runs += 1
        try:
            gold = self.gold(config)
            for _ in range(self.random.randint(1, 4)):
                fault, damage = self.random.choice(FAULTS), self.random.choice(DAMAGES)
                faults.append(fault)
                status, text = self.attempt(folder, config, fault)
                self.faults[fault] += 1
                expected = SIGNALS.get(fault)
                if expected and (folder / "signalled").exists() and status not in (expected, 0):
                    raise LostError(f"{fault} ended with status {status}\n{text[-3000:]}")
                if (folder / "result.json").exists():
                    break
                if damage != "none" and self.damage(folder / "run" / "last.pt", damage):
                    faults.append(damage)
                    self.faults[damage] += 1
            if not (folder / "result.json").exists():
                status, text = self.attempt(folder, config, None)
                if status or not (folder / "result.json").exists():
                    raise LostError(f"could not be finished, status {status}\n{text[-3000:]}")
            result = json.loads((folder / "result.json").read_text())
        except LostError as lost:
            self.lost.append(f"{config} {faults}: {lost}")
            print(f"LOST {self.lost[-1]}", flush=True)
            return
        parts = [name for name in gold["state"] if gold["state"][name] != result["state"][name]]
        parts += [name for name in ("rows", "points") if gold[name] != result[name]]
        if parts:
            self.differing.append(f"{config} {faults}: {', '.join(parts)} differ ({folder})")
            print(f"DIFFERS {self.differing[-1]}", flush=True)
        else:
            shutil.rmtree(folder)

    def gold(self, config: dict[str, Any]) -> Any:
        """Return the result of the same run without faults. Where and when it is saved makes no difference."""
        key = f"{config['nproc']}-{config['workers']}-{config['precision']}"
        if key not in self.golds:
            folder = self.folder / f"gold-{key}"
            status, text = self.attempt(folder, {**config, "background": False, "steps": 5}, None)
            if status:
                raise LostError(f"the undisturbed run ended with status {status}\n{text[-3000:]}")
            self.golds[key] = json.loads((folder / "result.json").read_text())
        return self.golds[key]

    def attempt(self, folder: Path, config: dict[str, Any], fault: str | None) -> tuple[int, str]:
        """Start the run or resume it, do something to it, and return its status and what it printed."""
        folder.mkdir(exist_ok=True)
        (folder / "signalled").unlink(missing_ok=True)
        command = [sys.executable, __file__, "--train", json.dumps({"folder": str(folder), **config})]
        limit = 3000 if fault == "full disk" else None

        def before() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=before,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
            if fault and fault != "full disk":
                self.disturb(process, folder, fault)
            try:
                status = process.wait(300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out.seek(0)
                raise LostError(f"hung after {fault}\n{out.read().decode()[-3000:]}") from None
            finally:
                leave = time.monotonic() + 20
                while left := [pid for pid in session(process.pid) if pid != process.pid]:
                    if fault in ("kill", "kill a worker") or time.monotonic() > leave:
                        for pid in left:
                            try_kill(pid, signal.SIGKILL)
                    time.sleep(0.1)
            out.seek(0)
            return (128 - status if status < 0 else status), out.read().decode(errors="replace")

    def disturb(self, process: subprocess.Popen[bytes], folder: Path, fault: str) -> None:
        """Wait until the run is at work, then for a random number of batches and a moment, and do it."""
        marker, batches = folder / "started", folder / "batches"
        marker.unlink(missing_ok=True)
        batches.unlink(missing_ok=True)
        count = self.random.randint(0, 30)
        while process.poll() is None and not (marker.exists() and size(batches) >= count):
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.1))
        if process.poll() is not None:
            return
        if fault == "kill":
            os.kill(process.pid, signal.SIGKILL)
        elif fault == "kill a worker":
            children = [pid for pid in session(process.pid) if pid != process.pid]
            if children:
                try_kill(self.random.choice(children), signal.SIGKILL)
            time.sleep(0.2)
            if process.poll() is None and not children:
                os.kill(process.pid, signal.SIGKILL)
        elif fault == "signal to all":
            (folder / "signalled").touch()
            os.killpg(process.pid, signal.SIGTERM)
        else:
            name = fault.split()[0]
            (folder / "signalled").touch()
            os.kill(process.pid, getattr(signal, name))
            if fault.endswith("twice"):
                time.sleep(0.05)
                try_kill(process.pid, signal.SIGTERM)

    def damage(self, path: Path, kind: str) -> bool:
        """Damage the newest checkpoint, if the one before it is there."""
        if not path.exists() or not path.with_name("before-last.pt").exists():
            return False
        content = bytearray(path.read_bytes())
        if kind == "flip a bit":
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        else:
            del content[self.random.randrange(len(content)) if kind == "truncate" else 0 :]
        path.unlink()  # best.pt may be a link to the same file
        path.write_bytes(content)
        return True


class LostError(Exception):
    """A run that did not save, did not resume, or hung."""


def session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == leader:
            found.append(int(path.parent.name))
    return found


def size(path: Path) -> int:
    """Return the size of a file, 0 without one."""
    return path.stat().st_size if path.exists() else 0


def try_kill(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def start(folder: str, nproc: int, **config: Any) -> None:
    """Be a run, in one process or in several."""
    Path(folder, "started").touch()
    launch(train, folder, nproc=nproc, backend="gloo" if nproc > 1 else None, timeout=60, **config)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long to start new runs (default: 10)")
    parser.add_argument("--runs", type=int, default=10**9, help="how many runs at most")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        start(**json.loads(arguments.train))
        return 0
    until = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        campaign = Campaign(arguments.seed, Path(folder))
        while campaign.runs < arguments.runs and time.monotonic() < until:
            campaign.one()
            print(f"\r{campaign.runs} runs, {campaign.faults.total()} faults", end="", flush=True)
    print("\n" + ", ".join(f"{number} {fault}" for fault, number in sorted(campaign.faults.items())))
    print(f"{len(campaign.lost)} lost, {len(campaign.differing)} differing")
    return bool(campaign.lost or campaign.differing)


if __name__ == "__main__":
    sys.exit(main())
