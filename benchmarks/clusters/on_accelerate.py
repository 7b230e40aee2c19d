"""Runs under accelerate launch, which uses torchrun. With --cpu alone it would start a single process."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from job import Check, plain, process_killed

COMMAND = "accelerate launch --multi_gpu --num_processes=2 train.py"
RESTARTS = "accelerate launch --multi_gpu --num_processes=2 --max_restarts=3 train.py"


def missing() -> str:
    try:
        version("accelerate")
    except PackageNotFoundError:
        return "pip install accelerate"
    return ""


NAME = f"accelerate {'' if missing() else version('accelerate')}"
CHECKS = [
    Check(NAME, COMMAND, "equals one process", plain(COMMAND)),
    Check(NAME, RESTARTS, "a process killed", process_killed(RESTARTS)),
]
