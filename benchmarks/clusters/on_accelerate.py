"""Runs under accelerate launch, which uses torchrun. With --cpu alone it would start a single process."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from job import Check, Job

COMMAND = "accelerate launch --multi_gpu --num_processes=2 train.py"
RESTARTS = "accelerate launch --multi_gpu --num_processes=2 --max_restarts=3 train.py"


def missing() -> str:
    try:
        version("accelerate")
    except PackageNotFoundError:
        return "pip install accelerate"
    return ""


def plain(job: Job) -> None:
    job.run(COMMAND)
    job.expect_result(2)


def killed(job: Job) -> None:
    process = job.start(RESTARTS)
    job.reach(40)
    job.kill_worker(1)
    job.end(process, 0)
    job.expect_result(2, 2, resumed_from=35)


NAME = f"accelerate {'' if missing() else version('accelerate')}"
CHECKS = [
    Check(NAME, COMMAND, "equals one process", plain),
    Check(NAME, RESTARTS, "a process killed", killed),
]
