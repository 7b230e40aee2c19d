"""Train on two hosts, break one of them or the link between them, and compare the end with an undisturbed run.

`sudo hatch run hosts`, or with `--torchrun` to compare. The hosts are two network namespaces of this machine
(Linux, root, iproute2), each with an address and a host name of its own, on a bridge in a third one. Both read and
write one folder of checkpoints. Each fault strikes in the middle of a run. The run then has to end with the same bits,
or, after a link that stays down, with an error on both hosts soon after `timeout`. All namespaces are removed at the
end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chaos import Augmented, digest, try_kill
from fit_callbacks import CheckpointSaver
from fit_core import Callback, Runner, RunnerState
from fit_distributed import launch, parallel, rank, shard
from torch import nn
from torch.utils.data import DataLoader

EPOCHS = 10  # of 24 steps
PORT = 29400
NAMES = ("fit-a", "fit-b")
SWITCH = "fit-switch"
WIRE = Path(__file__).with_name("wire.py")


# The run.


class Progress(Callback):
    """Note each step where the faults are made, and this process, which they may kill."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_begin(self, state: RunnerState) -> None:
        (self.folder / f"worker-{socket.gethostname()}").write_text(str(os.getpid()))

    def on_batch_end(self, state: RunnerState) -> None:
        if rank() == 0 and state.is_train:
            (self.folder / "step").write_text(str(state.global_step))


def train(folder: str) -> None:
    """Train, or resume, and write what the run has come to."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = parallel(nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3)))
    runner = Runner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        callbacks=[CheckpointSaver(f"{folder}/run", every_steps=5, resume="auto"), Progress(folder)],
    )
    runner.fit(shard(DataLoader(Augmented(1), 2, shuffle=True)), epochs=EPOCHS)
    if rank() == 0:
        Path(folder, "result.json").write_text(json.dumps(digest(runner.state.state_dict())))


# The hosts.


class Hosts:
    """Two hosts of which each runs a launch, and the link between them."""

    def __init__(self, timeout: float, command: list[str]) -> None:
        self.timeout = timeout
        self.command = command
        self.folder = Path()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.wire: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Hosts:
        self.remove()
        for name in (SWITCH, *NAMES):
            ip(f"netns add {name}")
            ip(f"-n {name} link set lo up")
        ip(f"-n {SWITCH} link add bridge type bridge")
        ip(f"-n {SWITCH} link set bridge up")
        hosts = "127.0.0.1 localhost\n" + "".join(f"10.77.0.{i} {name}\n" for i, name in enumerate(NAMES, start=1))
        for number, name in enumerate(NAMES, start=1):
            ip(f"-n {SWITCH} link add {name} type veth peer name eth0 netns {name}")
            ip(f"-n {SWITCH} link set {name} master bridge up")
            ip(f"-n {name} addr add 10.77.0.{number}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"netns exec {name} {sys.executable} {WIRE} --prepare eth0")
            etc = Path(f"/etc/netns/{name}")  # ip shows its files in place of those of /etc.
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(hosts)
            (etc / "nsswitch.conf").write_text("hosts: files\n")
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self.remove()

    def remove(self) -> None:
        """Take the namespaces down, also those of a run of this script that was killed."""
        for name in (SWITCH, *NAMES):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(f"netns del {name}")
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)

    def start(self, name: str) -> None:
        """Start the launch on a host."""
        log = (self.folder / f"{name}.log").open("ab")
        shell = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', name]
        self.processes[name] = subprocess.Popen(
            ["ip", "netns", "exec", name, *shell, *self.command, str(self.folder), str(self.timeout)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def kill(self, name: str) -> None:
        """Kill the launch on a host, and its worker, which would outlive torchrun."""
        self.processes[name].kill()
        self.kill_worker(name)
        self.processes[name].wait()

    def kill_worker(self, name: str) -> None:
        """Kill the worker on a host."""
        try_kill(int((self.folder / f"worker-{name}").read_text()), signal.SIGKILL)

    def link(self, state: str) -> None:
        """Let the switch drop all packets between the hosts without a word, or pass them on again."""
        ip(f"-n {SWITCH} link set {NAMES[1]} {state}")

    def disturb(self, delay: float, loss: float) -> None:
        """Delay packets between the hosts from now on, and lose a share of them."""
        for name in NAMES:
            ip(f"-n {SWITCH} link set {name} nomaster")
        wire = [sys.executable, str(WIRE), *NAMES, str(delay), str(loss)]
        self.wire = subprocess.Popen(["ip", "netns", "exec", SWITCH, *wire])

    def mend(self) -> None:
        """Let the switch pass on all packets."""
        for name in NAMES:
            ip(f"-n {SWITCH} link set {name} master bridge")
        self.link("up")

    def reach(self, step: int) -> None:
        """Wait until the run has made so many steps."""
        while self.step() < step and any(process.poll() is None for process in self.processes.values()):
            time.sleep(0.05)

    def step(self) -> int:
        try:
            return int((self.folder / "step").read_text() or 0)
        except FileNotFoundError:
            return 0

    def stop(self) -> None:
        if self.wire:
            self.wire.kill()
            self.wire.wait()
            self.wire = None
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.processes.clear()


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, stderr=subprocess.DEVNULL)


# What happens to them.


def restart(name: str) -> Callable[[Hosts], None]:
    def fault(hosts: Hosts) -> None:
        hosts.kill(name)
        time.sleep(2)  # what a supervisor takes
        hosts.start(name)

    return fault


def cut(seconds: float | None) -> Callable[[Hosts], None]:
    def fault(hosts: Hosts) -> None:
        hosts.link("down")
        if seconds is not None:
            time.sleep(seconds)
            hosts.link("up")

    return fault


FAULTS: dict[str, Callable[[Hosts], None]] = {
    "none": lambda hosts: None,
    "worker killed": lambda hosts: hosts.kill_worker(NAMES[1]),
    "host killed, started again": restart(NAMES[1]),
    "meeting host killed, started again": restart(NAMES[0]),
    "link down for 5 s": cut(5),
    "link down for 25 s": cut(25),
    "link down for 60 s": cut(60),
    "20 ms delay each way, 2% loss": lambda hosts: hosts.disturb(0.02, 0.02),
    "one host 15 s late": lambda hosts: None,
    "link down for good": cut(None),
}


def attempt(hosts: Hosts, fault: str, late: float) -> tuple[dict[str, Any] | None, float, float, list[str]]:
    """Make a run with a fault. Return result, seconds, those since the fault, and each host's last line."""
    hosts.mend()
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        hosts.folder = Path(folder)
        start = time.monotonic()
        hosts.start(NAMES[0])
        if late:
            time.sleep(late)
        hosts.start(NAMES[1])
        hosts.reach(24 * EPOCHS // 2)
        struck = time.monotonic()
        FAULTS[fault](hosts)
        limit = time.monotonic() + 6 * hosts.timeout
        while any(process.poll() is None for process in hosts.processes.values()) and time.monotonic() < limit:
            time.sleep(0.05)
        end = time.monotonic()
        hosts.stop()
        result = hosts.folder / "result.json"
        logs = [(hosts.folder / f"{name}.log").read_text(errors="replace") for name in NAMES]
        if "SHOW" in os.environ:
            print("\n=====\n".join(logs))
        return (
            json.loads(result.read_text()) if result.exists() else None,
            end - start,
            end - struck,
            [log.rstrip().rpartition("\n")[2] for log in logs],
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--timeout", type=float, default=60, help="of launch (default: 60)")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), help="these faults")
    parser.add_argument("--torchrun", action="store_true", help="let torchrun start the processes, to compare")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        folder, timeout = arguments.train
        launch(train, folder, nproc=1, nnodes=2, rdzv=f"{NAMES[0]}:{PORT}", max_restarts=3, timeout=float(timeout))
        return 0
    command, wrong = [sys.executable, __file__, "--train"], 0
    if arguments.torchrun:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={NAMES[0]}:{PORT}", "--max-restarts=3", "--nnodes=2"]
        command[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node=1", *meeting]
    with Hosts(arguments.timeout, command) as hosts:
        gold, plain, _, _ = attempt(hosts, "none", 0)
        print(f"| fault | end | seconds |\n|---|---|---|\n| none | - | {plain:.0f} |", flush=True)
        for fault in arguments.only:
            if fault == "none":
                continue
            late = 15 if "late" in fault else 0
            result, seconds, since, last = attempt(hosts, fault, late)
            if result is None:
                print(f"| {fault} | {' / '.join(last)} | {since:.0f} after the fault |", flush=True)
            else:
                other = [name for name in result if result[name] != gold[name]]
                wrong += bool(other)
                end = f"other {', '.join(other)}" if other else "same bits"
                print(f"| {fault} | {end} | {seconds - plain:.0f} lost |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
