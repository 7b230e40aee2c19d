"""Runs under torchrun, with a fixed and with a changing number of hosts, and under torch.distributed.launch."""

from __future__ import annotations

import signal
import socket
import subprocess
import time

import torch
from job import Check, Job, plain, process_killed, until

NAME = f"torchrun, torch {torch.__version__.partition('+')[0]}"
PLAIN = "torchrun --nproc-per-node=2 train.py"
RESTARTS = "torchrun --nproc-per-node=2 --max-restarts=3 train.py"
OLD = "python -m torch.distributed.launch --nproc-per-node=2 train.py"
ELASTIC = (
    "torchrun --nnodes=1:2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=localhost:29400 --max-restarts=3 "
    "train.py"
)


# torch 2.13 keeps one store for all rounds, in which a host that comes back does not find the address.
RETURNS = f"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 {ELASTIC}"


def missing() -> str:
    return ""


def signalled(job: Job) -> None:
    process = job.start(PLAIN)
    job.reach(41)
    process.send_signal(signal.SIGTERM)
    job.end(process, *range(1, 256), -15, seconds=60)
    job.expect("CheckpointSaver: stopped by SIGTERM")
    job.run(PLAIN)
    job.expect_result(2, 2, resumed_from=41)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def both(job: Job, command: str = ELASTIC) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes], str]:
    """Start two hosts, and wait until they are at work. Return them with their command, which has a port of its own."""
    port = free_port()
    command = command.replace("29400", str(port))
    first = job.start(command, PACE="0.2")
    until(lambda: is_listening(port), "the first host, where they meet", job)
    second = job.start(command, PACE="0.2")
    job.reach(30)
    return first, second, command


def worker_killed(job: Job) -> None:
    first, second, _ = both(job)
    job.kill_worker(1)
    job.end(first, 0)
    job.end(second, 0)
    job.expect_result(2, 2, resumed_from=25)


def kill_host(job: Job, agent: subprocess.Popen[bytes]) -> None:
    """Kill torchrun on the second host, and the process there, which would live on without it."""
    agent.kill()
    job.kill_worker(1)


def host_leaves(job: Job) -> None:
    first, second, _ = both(job)
    kill_host(job, second)
    job.end(first, 0)
    job.expect_result(2, 1, resumed_from=25)


def host_returns(job: Job) -> None:
    first, second, command = both(job, RETURNS)
    kill_host(job, second)
    while len(job.starts()) < 2 and first.poll() is None:
        time.sleep(0.1)
    back = job.start(command, PACE="0.2")
    job.end(first, 0)
    job.end(back, 0)
    job.expect_result(2, 1, 2, resumed_from=25)


CHECKS = [
    Check(NAME, PLAIN, "equals one process", plain(PLAIN)),
    Check(NAME, RESTARTS, "a process killed", process_killed(RESTARTS)),
    Check(NAME, PLAIN, "SIGTERM saves, started again", signalled),
    Check(NAME, OLD, "equals one process", plain(OLD)),
    Check(NAME, ELASTIC, "a process killed", worker_killed),
    Check(NAME, ELASTIC, "a host killed: one process is left", host_leaves),
    Check(NAME, RETURNS, "a host killed and back: two processes again", host_returns),
]
